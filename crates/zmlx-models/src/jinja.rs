//! An interpreter of Jinja templates that gives the results of Python's Jinja2 in Hugging Face's environment.
//!
//! Chat templates are programs from downloaded files, and they are written for one implementation. Its values are
//! Python's: how they print, compare, count and fail. It trims blocks. Its sandbox has `raise_exception`,
//! `strftime_now`, `{% generation %}` and a `tojson` with the arguments of `json.dumps`. This interpreter follows that
//! implementation, and it limits the cost of a template: nesting, steps and bytes in use. A template that exceeds a
//! limit ends with an error. It can exhaust neither memory nor the stack, and it cannot loop forever.
//! error, never in a full memory, a full stack or an endless loop.

mod ast;
mod budget;
mod calls;
mod checks;
mod fault;
mod filters;
mod format;
mod iter;
mod json;
mod lexer;
mod methods;
mod numbers;
mod ops;
mod parser;
mod run;
mod scope;
mod text;
mod value;

use std::thread;

use serde_json::{Map, Value};

pub use fault::TemplateError;
pub(crate) use text::float_repr;

/// Stack size of the thread that parses and renders: enough for [`MAX_DEPTH`] levels in a build without optimisation.
const STACK_BYTES: usize = 64 << 20;
/// The largest depth of nested expressions, blocks and macro calls.
const MAX_DEPTH: u32 = 1000;
/// The size of the largest template, in bytes. Published ones have up to 30 thousand.
const MAX_SOURCE_BYTES: usize = 1 << 20;

/// A parsed template.
#[derive(Debug)]
pub(crate) struct Template {
    body: Vec<ast::Stmt>,
}

impl Template {
    /// Parses a template. All kinds of line ends become `\n`.
    ///
    /// # Errors
    /// If the text is not a template, or is too deeply nested or too long.
    pub(crate) fn parse(source: &str) -> Result<Self, TemplateError> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(TemplateError::TooLarge { what: "bytes of text", limit: MAX_SOURCE_BYTES as u64 });
        }
        let body = on_known_stack(|| parser::parse(source))?;
        Ok(Self { body })
    }

    /// Renders the template with these variables.
    ///
    /// # Errors
    /// [`TemplateError::Raised`] if the template calls `raise_exception`; other errors if it fails or costs too much.
    pub(crate) fn render(&self, variables: &Map<String, Value>) -> Result<String, TemplateError> {
        on_known_stack(|| run::render(&self.body, variables))
    }
}

impl Drop for Template {
    fn drop(&mut self) {
        // A deep syntax tree is dropped level by level.
        let body = std::mem::take(&mut self.body);
        let _ = on_known_stack(move || {
            drop(body);
            Ok(())
        });
    }
}

/// Runs `work` on a thread whose stack has a known size, independent of the caller's.
fn on_known_stack<T: Send>(
    work: impl FnOnce() -> Result<T, Box<fault::Fault>> + Send,
) -> Result<T, TemplateError> {
    let internal = |message: &str| TemplateError::Failed { line: 0, message: message.to_owned() };
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("template".to_owned()).stack_size(STACK_BYTES);
        let handle = builder
            .spawn_scoped(scope, work)
            .map_err(|e| internal(&format!("cannot start a thread for rendering: {e}")))?;
        match handle.join() {
            Ok(done) => done.map_err(|fault| TemplateError::from(*fault)),
            Err(_) => Err(internal("the template interpreter failed")),
        }
    })
}

#[cfg(test)]
mod tests;
