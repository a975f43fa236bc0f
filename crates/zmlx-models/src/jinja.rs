//! Jinja templates as Python's Jinja2 runs them in Hugging Face's environment.
//!
//! Chat templates are programs out of downloaded files, written for one implementation: its values are Python's (how they
//! print, compare, count and fail), its blocks are trimmed, its sandbox knows `raise_exception`, `strftime_now`,
//! `{% generation %}` and a `tojson` with the arguments of `json.dumps`. This interpreter follows that implementation and
//! bounds what a template may cost: nesting, steps and bytes that are alive. A template that exceeds a bound ends in an
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

/// Stack of the thread that parses and renders: enough for [`MAX_DEPTH`] levels of a build without optimisation.
const STACK_BYTES: usize = 64 << 20;
/// Most levels of expressions, blocks and macro calls within each other.
const MAX_DEPTH: u32 = 1000;
/// Largest template, in bytes: published ones have up to 30 thousand.
const MAX_SOURCE_BYTES: usize = 1 << 20;

/// A parsed template.
#[derive(Debug)]
pub(crate) struct Template {
    body: Vec<ast::Stmt>,
}

impl Template {
    /// Parses a template. Line ends of all kinds become `\n`.
    ///
    /// # Errors
    /// If it is not a template, or nested or long beyond all measure.
    pub(crate) fn parse(source: &str) -> Result<Self, TemplateError> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(TemplateError::TooLarge { what: "bytes of text", limit: MAX_SOURCE_BYTES as u64 });
        }
        let body = on_known_stack(|| parser::parse(source))?;
        Ok(Self { body })
    }

    /// The text that the template makes of the variables.
    ///
    /// # Errors
    /// [`TemplateError::Raised`] if the template calls `raise_exception`, the other kinds if it fails or costs too much.
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

/// Runs `work` on a thread whose stack has a known size, whoever calls.
fn on_known_stack<T: Send>(
    work: impl FnOnce() -> Result<T, Box<fault::Fault>> + Send,
) -> Result<T, TemplateError> {
    let internal = |message: &str| TemplateError::Failed { line: 0, message: message.to_owned() };
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("template".to_owned()).stack_size(STACK_BYTES);
        let handle = builder
            .spawn_scoped(scope, work)
            .map_err(|e| internal(&format!("no thread to render on: {e}")))?;
        match handle.join() {
            Ok(done) => done.map_err(|fault| TemplateError::from(*fault)),
            Err(_) => Err(internal("the interpreter of templates failed")),
        }
    })
}

#[cfg(test)]
mod tests;
