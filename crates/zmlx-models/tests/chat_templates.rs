//! Whole conversations, compared with Hugging Face's Jinja2. The templates are similar to those of GLM-4.6, GLM-4.7,
//! Qwen3 and Qwen3-Coder, with and without tools, thinking and tool results.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};
use zmlx_models::{ChatMessage, ChatRequest, ChatTemplate, Ending};

#[derive(Deserialize)]
struct Recorded {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    name: String,
    messages: Vec<ChatMessage>,
    tools: Option<Vec<Value>>,
    kwargs: Map<String, Value>,
    opens: bool,
    /// Missing if rendering fails.
    text: Option<String>,
}

#[test]
fn conversations_are_those_of_jinja2() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/templates");
    let recorded = std::fs::read_to_string(folder.join("conversations.json")).unwrap();
    let cases = serde_json::from_str::<Recorded>(&recorded).unwrap().cases;
    assert!(cases.len() >= 300);
    for case in cases {
        let source = std::fs::read_to_string(folder.join(&case.template)).unwrap();
        let template = ChatTemplate::from_parts("test", None, Some(source)).unwrap();
        let ending = if case.opens { Ending::GenerationPrompt } else { Ending::Closed };
        let mut request = ChatRequest::new(&case.messages).with_kwargs(&case.kwargs).with_ending(ending);
        if let Some(tools) = &case.tools {
            request = request.with_tools(tools);
        }
        let Case { template: file, name, kwargs, opens, text, .. } = &case;
        let what = format!("{file}, {name}, tools {}, {kwargs:?}, opens {opens}", case.tools.is_some());
        match (template.render(&request), text) {
            (Ok(got), Some(want)) => assert_eq!(got, *want, "{what}"),
            (Err(_), None) => {}
            (got, want) => panic!("{what}: got {got:?}, want {want:?}"),
        }
    }
}
