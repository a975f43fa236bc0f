//! Thinking and tool calls: the result does not depend on how the text is split.
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use zmlx_models::ThinkingMode;
use zmlx_serve::tools::{OutputParser, ParserOptions, Piece, TextEnd, Tool, ToolSyntax};

/// An answer as its reader sees it at its end.
#[derive(Debug, Default, PartialEq)]
struct Answer {
    reasoning: String,
    content: String,
    calls: Vec<(String, String)>,
}

fn tools() -> Vec<Tool> {
    let parameters = json!({"type": "object", "properties": {
        "city": {"type": "string"}, "days": {"type": "integer"}, "flag": {"type": "boolean"},
        "list": {"type": "array"}, "maybe": {"type": ["string", "null"]}, "kind": {"enum": ["a", "b"]},
        "any": {}, "object": {"anyOf": [{"type": "object"}, {"type": "null"}]}
    }});
    let tool = |name: &str| Tool {
        name: name.into(),
        description: None,
        parameters: parameters.clone(),
        strict: false,
    };
    vec![tool("get_weather"), tool("get_time")]
}

fn run(options: &ParserOptions<'_>, pieces: &[&str], end: TextEnd) -> Answer {
    let mut parser = OutputParser::new(options);
    let mut out = Vec::new();
    for piece in pieces {
        parser.push(piece, &mut out);
    }
    parser.finish(end, &mut out);
    collect(out)
}

fn collect(pieces: Vec<Piece>) -> Answer {
    let mut answer = Answer::default();
    let mut is_open = false;
    for piece in pieces {
        match piece {
            Piece::Reasoning(text) => answer.reasoning += &text,
            Piece::Content(text) => {
                assert!(!is_open, "content within a call");
                answer.content += &text;
            }
            Piece::CallStart { name } => {
                assert!(!is_open, "a call within a call");
                is_open = true;
                answer.calls.push((name, String::new()));
            }
            Piece::CallArguments(text) => {
                assert!(is_open, "arguments without a call");
                answer.calls.last_mut().unwrap().1 += &text;
            }
            Piece::CallEnd => {
                assert!(is_open, "an end without a call");
                is_open = false;
            }
            Piece::CallBroken(text) => {
                assert!(is_open, "a broken call that did not begin");
                is_open = false;
                answer.calls.pop();
                answer.content += &text;
            }
            Piece::CallCut => {
                if std::mem::take(&mut is_open) {
                    answer.calls.pop();
                }
            }
        }
    }
    assert!(!is_open, "a call without an end");
    answer
}

/// Parses the text one character at a time, with every single split, and with random splits. The result must be the
/// same.
fn read(syntax: Option<ToolSyntax>, thinking: ThinkingMode, text: &str, end: TextEnd) -> Answer {
    let tools = tools();
    let options = ParserOptions { thinking, syntax, tools: &tools };
    let want = run(&options, &[text], end);
    let cuts: Vec<usize> = text.char_indices().map(|(at, _)| at).skip(1).collect();
    let cut = |at: &[usize]| -> Vec<&str> {
        let ends = at.iter().copied().chain([text.len()]);
        let starts = [0].into_iter().chain(at.iter().copied());
        starts.zip(ends).map(|(start, end)| &text[start..end]).collect()
    };
    assert_eq!(run(&options, &cut(&cuts), end), want, "one character at a time: {text:?}");
    for at in &cuts {
        assert_eq!(run(&options, &cut(&[*at]), end), want, "{:?}", cut(&[*at]));
    }
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    for _ in 0..200 {
        let at: Vec<usize> = cuts.iter().copied().filter(|_| rng.random_range(0..4) == 0).collect();
        assert_eq!(run(&options, &cut(&at), end), want, "{:?}", cut(&at));
    }
    want
}

fn whole(syntax: ToolSyntax, text: &str) -> Answer {
    read(Some(syntax), ThinkingMode::IfTagged, text, TextEnd::Whole)
}

fn answer(content: &str, calls: &[(&str, Value)]) -> Answer {
    let calls = calls.iter().map(|(name, arguments)| ((*name).to_owned(), arguments.to_string())).collect();
    Answer { reasoning: String::new(), content: content.into(), calls }
}

/// Compares arguments as JSON.
#[track_caller]
fn assert_calls(got: Answer, content: &str, calls: &[(&str, Value)]) {
    assert_eq!(got.content, content);
    let parsed: Vec<(String, Value)> =
        got.calls.into_iter().map(|(name, a)| (name, serde_json::from_str(&a).unwrap())).collect();
    let want: Vec<(String, Value)> = calls.iter().map(|(n, a)| ((*n).to_owned(), a.clone())).collect();
    assert_eq!(parsed, want);
}

fn paris() -> Value {
    json!({"city": "Paris", "days": 3})
}

#[test]
fn glm() {
    let call = "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value><arg_key>days</arg_key><arg_value>3</arg_value></tool_call>";
    let time = "<tool_call>get_time</tool_call>";
    let read = |text: &str| whole(ToolSyntax::Glm, text);
    assert_eq!(read(call), answer("", &[("get_weather", paris())]));
    assert_eq!(read(time), answer("", &[("get_time", json!({}))]));
    let both = [("get_weather", paris()), ("get_time", json!({}))];
    assert_eq!(read(&format!("{call}{time}")), answer("", &both));
    assert_eq!(read(&format!("\n{call}\n{time}\n")), answer("", &both));
    assert_eq!(read(&format!("I look.\n{call}\nDone.")), answer("I look.\nDone.", &both[..1]));
    let spaced = "<tool_call>get_weather \n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key> <arg_value>3</arg_value>\n</tool_call>";
    assert_eq!(read(spaced), answer("", &both[..1]));
    assert_eq!(read("<tool_call>get_time\n</tool_call>"), answer("", &both[1..]));
    for text in [
        "a < b <tool_cal",
        "<tool_call>\n{\"name\": 1}",
        "<tool_call>two words</tool_call>",
        "<tool_call>get_time<b></tool_call>",
        "<tool_call>get_weather<arg_key>city</arg_key>x</tool_call>",
        "<tool_call>",
        "<tool_call><tool_call>",
        "</tool_call>",
    ] {
        assert_eq!(read(text), answer(text, &[]), "{text}");
    }
}

#[test]
fn values_of_glm() {
    let value = |key: &str, text: &str| {
        let call = format!(
            "<tool_call>get_weather<arg_key>{key}</arg_key><arg_value>{text}</arg_value></tool_call>"
        );
        let mut got = whole(ToolSyntax::Glm, &call);
        let arguments: Value = serde_json::from_str(&got.calls.remove(0).1).unwrap();
        arguments[key].clone()
    };
    for raw in ["007", "true", "null", "", " a\n", "{\"a\": 1}", "<b>é🦀</b>", "<arg_key>", "\"quoted\""] {
        assert_eq!(value("city", raw), json!(raw));
    }
    assert_eq!(value("days", "3"), json!(3));
    assert_eq!(value("days", "three"), json!("three"));
    assert_eq!(value("flag", "True"), json!(true));
    assert_eq!(value("list", "['a', None, 1.5]"), json!(["a", null, 1.5]));
    assert_eq!(value("maybe", "null"), json!(null));
    assert_eq!(value("maybe", "1"), json!("1"));
    assert_eq!(value("kind", "a"), json!("a"));
    assert_eq!(value("object", "{'a': 'it\\'s \"x\"'}"), json!({"a": "it's \"x\""}));
    for (text, want) in [
        ("[1, 2]", json!([1, 2])),
        ("5", json!(5)),
        ("false", json!(false)),
        ("null", json!("null")),
        ("\"x\"", json!("\"x\"")),
        ("x", json!("x")),
    ] {
        assert_eq!(value("any", text), want);
        assert_eq!(value("unknown", text), want);
    }
}

#[test]
fn qwen() {
    let read = |text: &str| whole(ToolSyntax::Qwen, text);
    let call = "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"days\": 3}}\n</tool_call>";
    let time = "<tool_call>\n{\"name\": \"get_time\", \"arguments\": {}}\n</tool_call>";
    let both = [("get_weather", paris()), ("get_time", json!({}))];
    assert_calls(read(call), "", &both[..1]);
    assert_calls(read(&format!("{call}\n{time}")), "", &both);
    assert_calls(read(&format!("Well: {call}{time} ")), "Well:", &both);
    // A string may contain the tag, quotes and constants may be Python's, and strings may contain line ends.
    for (arguments, want) in [
        ("{\"city\": \"a </tool_call> b\"}", json!({"city": "a </tool_call> b"})),
        ("{'city': 'it\\'s', 'flag': True, 'n': None}", json!({"city": "it's", "flag": true, "n": null})),
        ("{\"city\": \"a\nb\\n\\\"c\\\"\"}", json!({"city": "a\nb\n\"c\""})),
        ("{\"a\": {\"b\": [{}, \"}\"]}}", json!({"a": {"b": [{}, "}"]}})),
        ("{\"a\": 'say \"x\"', \"b\": \"\\u00e9\\x41\"}", json!({"a": "say \"x\"", "b": "éA"})),
    ] {
        let call = format!("<tool_call>\n{{\"name\": \"f\", \"arguments\": {arguments}}}\n</tool_call>");
        assert_calls(read(&call), "", &[("f", want)]);
    }
    for usual_not in [
        "<tool_call>{\"arguments\": {\"city\": \"Paris\", \"days\": 3}, \"name\": \"get_weather\"}</tool_call>",
        "<tool_call>{'name': 'get_weather', 'arguments': {'city': 'Paris', 'days': 3}}</tool_call>",
        "<tool_call>{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\", \"days\": 3}}</tool_call>",
        "<tool_call>{\"name\": \"get_weather\", \"arguments\": \"{\\\"city\\\": \\\"Paris\\\", \\\"days\\\": 3}\"}",
        "<tool_call>{\"type\": \"function\", \"function\": {\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"days\": 3}}}",
        "<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"days\": 3}, \"id\": 1}\n</tool_call>",
        "<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"days\": 3}}",
    ] {
        assert_calls(read(usual_not), "", &both[..1]);
    }
    assert_calls(read("<tool_call>{\"name\": \"get_time\"}</tool_call>"), "", &both[1..]);
    for text in [
        "<tool_call>text</tool_call>",
        "<tool_call>{\"name\": \"get_time\", \"arguments\": {\"a\": 1,}}</tool_call>",
        "<tool_call>{\"name\": \"get_time\", \"arguments\": {\"a\": }}</tool_call>",
        "<tool_call>{\"nam\": \"get_time\"}</tool_call>",
        "<tool_call>{\"name\": \"get_time\", \"arguments\": [1]}</tool_call>",
        "<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Par",
        "1 < 2",
    ] {
        assert_eq!(read(text), answer(text, &[]), "{text}");
    }
}

#[test]
fn coder() {
    let read = |text: &str| whole(ToolSyntax::Coder, text);
    let function = "<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>";
    let time = "<tool_call>\n<function=get_time>\n</function>\n</tool_call>";
    let both = [("get_weather", paris()), ("get_time", json!({}))];
    let call = format!("<tool_call>\n{function}\n</tool_call>");
    assert_calls(read(&call), "", &both[..1]);
    assert_calls(read(&format!("{call}\n{time}")), "", &both);
    assert_calls(read(&format!("Now:\n\n{function}\n</tool_call>\n{time}")), "Now:", &both);
    assert_calls(read(function), "", &both[..1]);
    assert_calls(read(&format!("{function} Done")), "Done", &both[..1]);
    let open = "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n<parameter=days>\n3\n</function>\n</tool_call>";
    assert_calls(read(open), "", &both[..1]);
    let text =
        "<tool_call><function=get_weather><parameter=city>\n\n a\nb \n\n</parameter></function></tool_call>";
    assert_calls(read(text), "", &[("get_weather", json!({"city": "\n a\nb \n"}))]);
    for text in [
        "<function=unknown>\n</function>",
        "<tool_call>\nget_time\n</tool_call>",
        "<tool_call>\n<function=get_time>\nx</function>\n</tool_call>",
        "x <functional> <function",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nPar",
    ] {
        assert_eq!(read(text), answer(text, &[]), "{text}");
    }
}

#[test]
fn what_is_cut_off_is_dropped() {
    for (syntax, text) in [
        (ToolSyntax::Glm, "Look: <tool_call>get_weather<arg_key>city</arg_key><arg_value>Par"),
        (ToolSyntax::Qwen, "Look: <tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Par"),
        (ToolSyntax::Qwen, "Look: <tool_call>\n{\"na"),
        (ToolSyntax::Coder, "Look: <tool_call>\n<function=get_weather>\n<parameter=city>\nPar"),
    ] {
        let got = read(Some(syntax), ThinkingMode::Off, text, TextEnd::Cut);
        assert_eq!(got.content.trim_end(), "Look:", "{text}");
        assert!(got.calls.is_empty());
    }
}

#[test]
fn thinking() {
    let split = |mode: ThinkingMode, text: &str| {
        let got = read(None, mode, text, TextEnd::Whole);
        (got.reasoning, got.content)
    };
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    use ThinkingMode::{IfTagged, Off, Open};
    for mode in [IfTagged, Open] {
        assert_eq!(split(mode, "<think>\nI see. \n</think>\n\nYes. "), pair("I see.", "Yes. "));
        assert_eq!(split(mode, "\n<think></think>Yes"), pair("", "Yes"));
        assert_eq!(split(mode, "<think>a </th b\n c</think> "), pair("a </th b\n c", ""));
        assert_eq!(split(mode, "<think> a"), pair("a", ""));
    }
    assert_eq!(split(Open, "a\n</think>\nb</think>"), pair("a", "b</think>"));
    assert_eq!(split(Open, "\n\na"), pair("a", ""));
    assert_eq!(split(IfTagged, " Yes <think>no</think>"), pair("", " Yes <think>no</think>"));
    assert_eq!(split(IfTagged, " <thin"), pair("", " <thin"));
    assert_eq!(split(Off, "<think>a</think>b"), pair("", "<think>a</think>b"));
    let both = "<think>\ncall <tool_call>x</tool_call>?\n</think>\n\n<tool_call>get_time</tool_call>";
    let got = whole(ToolSyntax::Glm, both);
    assert_eq!((got.reasoning.as_str(), got.content.as_str()), ("call <tool_call>x</tool_call>?", ""));
    assert_eq!(got.calls, [("get_time".to_owned(), "{}".to_owned())]);
}

#[test]
fn without_syntax_tags_are_text() {
    let text = " <tool_call>get_time</tool_call>\n";
    assert_eq!(read(None, ThinkingMode::IfTagged, text, TextEnd::Whole), answer(text, &[]));
}

#[test]
fn text_comes_as_soon_as_it_is_certain() {
    let tools = tools();
    let options =
        ParserOptions { thinking: ThinkingMode::IfTagged, syntax: Some(ToolSyntax::Qwen), tools: &tools };
    let mut parser = OutputParser::new(&options);
    let mut push = |text: &str| {
        let mut pieces = Vec::new();
        parser.push(text, &mut pieces);
        pieces
    };
    assert_eq!(push("Hello"), [Piece::Content("Hello".into())]);
    assert_eq!(push(" you < "), [Piece::Content(" you <".into())]);
    assert_eq!(push("<tool"), []);
    assert_eq!(push("s>"), [Piece::Content(" <tools>".into())]);
    assert_eq!(push("<tool_call>{\"name\": \"get_weather\""), []);
    assert_eq!(
        push(", \"arguments\": {\"ci"),
        [Piece::CallStart { name: "get_weather".into() }, Piece::CallArguments("{\"ci".into())]
    );
    assert_eq!(push("ty\": \"P"), [Piece::CallArguments("ty\": \"P".into())]);
}

#[test]
fn the_template_tells_the_syntax() {
    assert_eq!(ToolSyntax::of_template("<tool_call>{name}<arg_key>"), Some(ToolSyntax::Glm));
    assert_eq!(ToolSyntax::of_template("<tool_call>\n<function=x>"), Some(ToolSyntax::Coder));
    assert_eq!(ToolSyntax::of_template("<tool_call>\n{\"name\""), Some(ToolSyntax::Qwen));
    assert_eq!(ToolSyntax::of_template("<|im_start|>"), None);
}

#[test]
fn channels_of_gpt_oss() {
    let tools = tools();
    let options = ParserOptions { thinking: ThinkingMode::Channels, syntax: None, tools: &tools };
    let text = "<|channel|>analysis<|message|>The weather.<|end|><|start|>assistant<|channel|>commentary \
                to=functions.get_weather <|constrain|>json<|message|>{\"city\":\"Bath\"}";
    let answer = run(&options, &[text], TextEnd::Whole);
    let call = ("get_weather".to_owned(), "{\"city\":\"Bath\"}".to_owned());
    assert_eq!((answer.reasoning.as_str(), answer.content.as_str()), ("The weather.", ""));
    assert_eq!(answer.calls, [call]);
    let mut parser = OutputParser::new(&options);
    let mut pieces = Vec::new();
    parser.push(&text[..text.len() - 4], &mut pieces);
    parser.finish(TextEnd::Cut, &mut pieces);
    assert_eq!(pieces.last(), Some(&Piece::CallCut));
    let text =
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>It rains.";
    let answer = run(&options, &[text], TextEnd::Whole);
    assert_eq!((answer.reasoning.as_str(), answer.content.as_str()), ("Hm.", "It rains."));
}
