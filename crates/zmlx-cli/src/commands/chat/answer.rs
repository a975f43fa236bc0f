//! One answer: its prompt, its tokens as they are generated, and its statistics.

use std::ops::ControlFlow;

use anyhow::Result;
use zmlx_kernels::Backend;
use zmlx_models::{
    AnswerPart, ChatMessage, ChatRequest, ChatTemplate, Ending, Engine, Event, Generation, Request,
    SamplingParams, StopReason, ThinkingMode, ThinkingSplitter, Tokenizer,
};

use super::screen::Screen;
use super::settings::Settings;
use crate::interrupt;
use crate::output::note;
use crate::progress::Progress;

/// Generates answers on one KV cache.
pub(super) struct Answers<'m, B: Backend> {
    pub(super) engine: Engine<'m, B>,
    pub(super) tokenizer: &'m Tokenizer,
    pub(super) template: &'m ChatTemplate,
    pub(super) eos_token_ids: Vec<u32>,
    pub(super) stop: Vec<String>,
    /// Whether a line of statistics follows each answer.
    pub(super) shows_stats: bool,
    pub(super) verbose: bool,
    pub(super) n_answers: u64,
    /// The statistics of the last answer.
    pub(super) last: Option<String>,
}

/// The parts of an answer.
#[derive(Default)]
struct Parts {
    thinking: String,
    answer: String,
}

impl<B: Backend> Answers<'_, B> {
    /// Generates the answer to a conversation and shows it as it is generated. Returns `None` if it was interrupted
    /// before its first token.
    pub(super) fn answer(
        &mut self,
        messages: &[ChatMessage],
        settings: &Settings,
    ) -> Result<Option<ChatMessage>> {
        let busy = interrupt::begin();
        let request = ChatRequest::new(messages).with_kwargs(&settings.kwargs);
        let text = self.template.render(&request)?;
        // The text that the template appends for the answer may open a thinking block. Text of the user may not.
        let closed = self.template.render(&request.with_ending(Ending::Closed));
        let appended = closed.ok().and_then(|closed| text.strip_prefix(&closed).map(str::to_owned));
        let mut splitter = ThinkingSplitter::new(ThinkingMode::after(&appended.unwrap_or_default()));
        let request = Request {
            // Each answer has its own seed, so that a second attempt gives another answer.
            sampling: SamplingParams {
                seed: settings.sampling.seed.wrapping_add(self.n_answers),
                ..settings.sampling.clone()
            },
            eos_token_ids: self.eos_token_ids.clone(),
            stop: self.stop.clone(),
            ..Request::new(self.tokenizer.encode(&text)?, settings.max_tokens)
        };
        let mut progress = Progress::new("Prompt");
        let mut screen = Screen::new(settings.hides_thinking);
        let mut parts = Parts::default();
        let mut n_shown = 0;
        let mut show = |text: &str, screen: &mut Screen| {
            if screen.is_raw() {
                screen.raw(text);
            }
            splitter.push(text, &mut |part, text| parts.add(part, text, screen));
        };
        let generation = self.engine.complete(request, |event| {
            match event {
                Event::Prompt { n_done, n_tokens, .. } => progress.update(*n_done, *n_tokens),
                Event::Token { token, .. } => {
                    n_shown += token.text.len();
                    show(&token.text, &mut screen);
                }
                _ => {}
            }
            let more = screen.is_well() && !busy.is_asked();
            if more { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        show(generation.text.get(n_shown..).unwrap_or_default(), &mut screen);
        splitter.finish(&mut |part, text| parts.add(part, text, &mut screen));
        screen.raw("\n");
        self.n_answers += 1;
        let figures = self.figures(&generation);
        if self.shows_stats && !self.verbose {
            screen.remark(&format!("[{figures}]\n"));
        }
        screen.end()?;
        self.tell(&generation);
        self.last = Some(figures);
        if generation.finished.reason == StopReason::Interrupted && generation.tokens.is_empty() {
            return Ok(None);
        }
        parts.message().map(Some)
    }

    /// The size of the context, and the statistics of the last answer.
    pub(super) fn stats(&self) -> String {
        let none = || format!("no answer yet; the context has room for {} tokens", self.context());
        format!("{}\n", self.last.clone().unwrap_or_else(none))
    }

    fn context(&self) -> usize {
        self.engine.model().architecture().max_position_embeddings
    }

    fn figures(&self, generation: &Generation) -> String {
        let finished = &generation.finished;
        let why = match finished.reason {
            StopReason::Eos | StopReason::StopString => "",
            StopReason::MaxTokens => "; ended by max_tokens",
            StopReason::ContextLength => "; the context is full: /undo or /reset",
            StopReason::CacheFull => "; the memory for keys and values is full: /undo or /reset",
            StopReason::Interrupted => "; ended by Ctrl-C",
            _ => "",
        };
        format!(
            "prompt {} tokens, {} of them cached, {:.1} tokens/s; answer {} tokens, {:.1} tokens/s; context {} of {}{why}",
            finished.n_prompt_tokens,
            finished.n_cached_tokens,
            generation.prompt_tps(),
            generation.tokens.len(),
            generation.generation_tps(),
            finished.n_prompt_tokens + generation.tokens.len(),
            self.context(),
        )
    }

    fn tell(&self, generation: &Generation) {
        if self.verbose {
            let finished = &generation.finished;
            note(format_args!(
                "Prompt: {} tokens ({} of them cached), {:.3} tokens-per-sec; answer: {} tokens, {:.3} \
                 tokens-per-sec; stop reason: {}",
                finished.n_prompt_tokens,
                finished.n_cached_tokens,
                generation.prompt_tps(),
                generation.tokens.len(),
                generation.generation_tps(),
                finished.reason.name()
            ));
        }
    }
}

impl Parts {
    fn add(&mut self, part: AnswerPart, text: &str, screen: &mut Screen) {
        match part {
            AnswerPart::Thinking => self.thinking += text,
            // No tools were offered, so a tool call is shown like any other text.
            _ => self.answer += text,
        }
        if !screen.is_raw() {
            screen.show(part, text);
        }
    }

    /// The message to append to the conversation.
    fn message(self) -> Result<ChatMessage> {
        let message = ChatMessage::new("assistant", self.answer);
        if self.thinking.is_empty() {
            return Ok(message);
        }
        Ok(message.with("reasoning_content", self.thinking.into())?)
    }
}
