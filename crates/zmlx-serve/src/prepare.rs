//! Turns a request into a request for the engine: prompt, tokens, grammar.

use zmlx_models::{ChatMessage, ChatRequest, Ending, Request, ThinkingMode};

use crate::call::{ChatCall, Continues, EndTokens, Settings, TextCall, TextPrompt, ToolChoice};
use crate::constrain::{Before, Calls, CallsWanted, Grammatical, Structure};
use crate::error::ApiError;
use crate::model::Loaded;
use crate::options::{Reasoning, ServerOptions, ToolParser};
use crate::tools::{OutputParser, ParserOptions, Tool, ToolSyntax};

/// More than the length in bytes of the longest token of any vocabulary.
const LONGEST_TOKEN: usize = 1024;

/// A request for the engine, and how to parse its answer.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) request: Request,
    pub(crate) parser: OutputParser,
    pub(crate) n_prompt: usize,
    /// True if the context leaves fewer tokens than the request asks for.
    pub(crate) is_cut: bool,
    pub(crate) most_calls: Option<usize>,
    pub(crate) wants_logprobs: bool,
    /// The field that contains the prompt.
    pub(crate) param: &'static str,
}

/// Prepares a conversation.
pub(crate) fn chat(loaded: &Loaded, options: &ServerOptions, call: ChatCall) -> Result<Prepared, ApiError> {
    let prompt = render(loaded, options, &call)?;
    let tokens = encode(loaded, &prompt.text, call.param)?;
    let opened = ThinkingMode::after(&prompt.opening);
    let is_open = opened == ThinkingMode::Open;
    let thinking = match options.reasoning {
        Reasoning::InContent => ThinkingMode::Off,
        Reasoning::Split => opened,
    };
    // If the structure of the answer is given, thinking that was not requested is turned off.
    let is_asked = call.kwargs.get("enable_thinking") == Some(&true.into())
        || call.kwargs.contains_key("reasoning_effort");
    let template = loaded.model.template.as_ref();
    let may_think =
        is_asked && template.is_some_and(|t| t.source(!call.tools.is_empty()).contains("<think>"));
    let before = if is_open {
        Before::OpenThinking
    } else if may_think && !prompt.opening.contains("</think>") {
        Before::PerhapsThinking
    } else {
        Before::Nothing
    };
    let has_tools = call.choice != ToolChoice::None && !call.tools.is_empty();
    let syntax = syntax(loaded, options, &call.choice).filter(|_| has_tools);
    let constraint = constraint(loaded, &call, syntax, before)?;
    let parser = OutputParser::new(&ParserOptions { thinking, syntax, tools: &call.tools });
    let ChatCall { settings, most_calls, param, .. } = call;
    Ok(Prepared { most_calls, ..prepared(loaded, options, (tokens, param), settings, parser, constraint)? })
}

/// The syntax of calls. If the template shows none, forced calls use the most common syntax.
fn syntax(loaded: &Loaded, options: &ServerOptions, choice: &ToolChoice) -> Option<ToolSyntax> {
    let is_forced = matches!(choice, ToolChoice::Required | ToolChoice::Named(_));
    let fallback = is_forced && options.tool_parser == ToolParser::OfTemplate;
    loaded.syntax.or(fallback.then_some(ToolSyntax::Qwen))
}

/// Prepares a text.
pub(crate) fn text(loaded: &Loaded, options: &ServerOptions, call: TextCall) -> Result<Prepared, ApiError> {
    let tokens = match call.prompt {
        TextPrompt::Text(text) => encode(loaded, &text, "prompt")?,
        TextPrompt::Tokens(tokens) => tokens,
    };
    let constraint = match &call.structure {
        None => None,
        Some(structure) => {
            let made = loaded.constraints.structure(structure, Before::Nothing);
            Some(made.map_err(|why| ApiError::field("structured_outputs", why))?)
        }
    };
    let parser = OutputParser::new(&ParserOptions { thinking: ThinkingMode::Off, syntax: None, tools: &[] });
    prepared(loaded, options, (tokens, "prompt"), call.settings, parser, constraint)
}

/// The number of tokens of a conversation.
pub(crate) fn count(loaded: &Loaded, options: &ServerOptions, call: &ChatCall) -> Result<usize, ApiError> {
    let prompt = render(loaded, options, call)?;
    Ok(encode(loaded, &prompt.text, call.param)?.len())
}

/// A rendered conversation.
pub(crate) struct Rendered {
    pub(crate) text: String,
    /// The beginning of the answer, which the template writes.
    pub(crate) opening: String,
}

/// Renders a conversation. A system message that the template does not allow at its position becomes a user message.
pub(crate) fn render(
    loaded: &Loaded,
    options: &ServerOptions,
    call: &ChatCall,
) -> Result<Rendered, ApiError> {
    let template =
        loaded.model.template.as_ref().ok_or_else(|| {
            ApiError::bad_request("the model has no chat template: it can only continue texts")
        })?;
    let mut kwargs = options.chat_template_args.clone();
    kwargs.extend(call.kwargs.clone());
    let render = |messages: &[ChatMessage]| -> zmlx_models::Result<Rendered> {
        let mut request = ChatRequest::new(messages).with_kwargs(&kwargs);
        if let Some(tools) = call.shown_tools() {
            request = request.with_tools(tools);
        }
        match call.continues {
            Continues::LastMessage => {
                let text = template.render(&request.with_ending(Ending::ContinueLast))?;
                let opening = call.messages.last().map(ChatMessage::text).unwrap_or_default();
                Ok(Rendered { text, opening })
            }
            Continues::NewMessage => {
                let text = template.render(&request.with_ending(Ending::GenerationPrompt))?;
                // A template may refuse a conversation without a request to answer it.
                let Ok(closed) = template.render(&request.with_ending(Ending::Closed)) else {
                    let is_open = text.trim_end().ends_with("<think>");
                    return Ok(Rendered {
                        text,
                        opening: if is_open { "<think>".into() } else { String::new() },
                    });
                };
                let n_common = text.bytes().zip(closed.bytes()).take_while(|(a, b)| a == b).count();
                let opening = text.get(n_common..).unwrap_or_default().to_owned();
                Ok(Rendered { text, opening })
            }
        }
    };
    let rendered = match render(&call.messages) {
        Err(zmlx_models::Error::ChatRefused { message }) => {
            let is_late = |(i, m): (usize, &ChatMessage)| i > 0 && m.role() == "system";
            if !call.messages.iter().enumerate().any(is_late) {
                return Err(ApiError::of_engine(&zmlx_models::Error::ChatRefused { message }, call.param));
            }
            let as_user = |(i, m): (usize, &ChatMessage)| {
                if is_late((i, m)) { ChatMessage::new("user", m.text()) } else { m.clone() }
            };
            render(&call.messages.iter().enumerate().map(as_user).collect::<Vec<_>>())
        }
        rendered => rendered,
    };
    rendered.map_err(|error| ApiError::of_engine(&error, call.param))
}

fn encode(loaded: &Loaded, text: &str, param: &str) -> Result<Vec<u32>, ApiError> {
    // No token is longer than this, so a prompt that cannot fit is refused before it is tokenised.
    let fewest = text.len() / LONGEST_TOKEN;
    if fewest >= loaded.context {
        return Err(ApiError::too_long(param, fewest, loaded.context));
    }
    loaded.model.tokenizer.encode(text).map_err(|error| ApiError::of_engine(&error, param))
}

fn constraint(
    loaded: &Loaded,
    call: &ChatCall,
    syntax: Option<ToolSyntax>,
    before: Before,
) -> Result<Option<Grammatical>, ApiError> {
    let forced: Option<Vec<Tool>> = match &call.choice {
        ToolChoice::Required => Some(call.tools.clone()),
        ToolChoice::Named(name) => Some(call.tools.iter().filter(|t| t.name == *name).cloned().collect()),
        ToolChoice::Auto | ToolChoice::None => None,
    };
    let strict = || call.tools.iter().any(|tool| tool.strict);
    let calls = |tools: &[Tool], wanted| {
        let Some(syntax) = syntax else {
            return Err(ApiError::field("tool_choice", "calls of tools are turned off: see --tool-parser"));
        };
        let calls = Calls { syntax, tools, wanted, most: call.most_calls };
        let made = loaded.constraints.calls(&calls, before);
        made.map(Some).map_err(|why| ApiError::field("tools", why))
    };
    if let Some(tools) = forced {
        return calls(&tools, CallsWanted::Required);
    }
    if let Some(structure) = &call.structure {
        let made = match (structure, syntax) {
            // Tools may be called before the answer.
            (Structure::Schema(_), Some(syntax)) => {
                let wanted = CallsWanted::Required;
                let calls = Calls { syntax, tools: &call.tools, wanted, most: call.most_calls };
                loaded.constraints.either(structure, &calls, before)
            }
            _ => loaded.constraints.structure(structure, before),
        };
        return made.map(Some).map_err(|why| ApiError::field("response_format", why));
    }
    if call.choice == ToolChoice::Auto && syntax.is_some() && strict() {
        return calls(&call.tools, CallsWanted::Allowed);
    }
    Ok(None)
}

fn prepared(
    loaded: &Loaded,
    options: &ServerOptions,
    (tokens, param): (Vec<u32>, &'static str),
    settings: Settings,
    parser: OutputParser,
    constraint: Option<Grammatical>,
) -> Result<Prepared, ApiError> {
    let n_prompt = tokens.len();
    if n_prompt == 0 {
        return Err(ApiError::field(param, "expected at least one token, got none"));
    }
    if n_prompt >= loaded.context {
        return Err(ApiError::too_long(param, n_prompt, loaded.context));
    }
    let n_left = loaded.context - n_prompt;
    let wanted = settings.max_tokens.or(options.max_tokens);
    let model = &loaded.model;
    let mut eos_token_ids = settings.stop_token_ids;
    let mut silent_token_ids = Vec::new();
    // The end of a grammar needs an end token.
    if settings.end_tokens == EndTokens::End || constraint.is_some() {
        eos_token_ids.extend(&model.eos_token_ids);
    } else {
        silent_token_ids.clone_from(&model.eos_token_ids);
    }
    let request = Request {
        min_tokens: settings.min_tokens,
        sampling: settings.sampling,
        eos_token_ids,
        silent_token_ids,
        stop: settings.stop,
        top_logprobs: settings.logprobs.unwrap_or(0),
        constraint: constraint.map(|c| Box::new(c) as Box<dyn zmlx_models::engine::Constraint>),
        ..Request::new(tokens, wanted.unwrap_or(n_left).min(n_left))
    };
    Ok(Prepared {
        request,
        parser,
        n_prompt,
        is_cut: wanted.is_none_or(|wanted| wanted > n_left),
        most_calls: None,
        wants_logprobs: settings.logprobs.is_some(),
        param,
    })
}
