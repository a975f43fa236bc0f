use rstest::rstest;
use serde_json::json;

use super::*;

fn messages(list: &[(&str, &str)]) -> Vec<ChatMessage> {
    list.iter().map(|(role, content)| ChatMessage::new(*role, *content)).collect()
}

fn template(source: &str) -> ChatTemplate {
    let config = r#"{"bos_token": {"content": "<s>"}, "eos_token": "</s>"}"#;
    ChatTemplate::from_parts("test", Some(config), Some(source.into())).unwrap()
}

fn render_with(source: &str, chat: &[(&str, &str)], kwargs: Value) -> Result<String> {
    let kwargs = kwargs.as_object().cloned().unwrap();
    template(source).render(&ChatRequest::new(&messages(chat)).with_kwargs(&kwargs))
}

fn render(source: &str, chat: &[(&str, &str)]) -> String {
    render_with(source, chat, json!({})).unwrap()
}

/// A template with the constructs that Qwen3's template uses: a namespace that is set by walking the messages
/// backwards, reasoning that is split off older answers, a switch that may be absent.
const REASONING: &str = r#"
{%- if messages[0].role == 'system' %}
    {{- '[sys]' + messages[0].content + '[end]\n' }}
{%- endif %}
{%- set ns = namespace(searching=true, last_user=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set idx = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and message.content is string and not(message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.searching = false %}
        {%- set ns.last_user = idx %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '[' + message.role + ']' + message.content + '[end]' + '\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set answer, thought = message.content, '' %}
        {%- if message.reasoning_content is defined and message.reasoning_content is not none %}
            {%- set thought = message.reasoning_content %}
        {%- elif '</t>' in message.content %}
            {%- set answer = message.content.split('</t>')[-1].lstrip('\n') %}
            {%- set thought = message.content.split('</t>')[0].rstrip('\n').split('<t>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_user and (loop.last or (not loop.last and thought)) %}
            {{- '[a]<t>\n' + thought.strip('\n') + '\n</t>\n\n' + answer.lstrip('\n') }}
        {%- else %}
            {{- '[a]' + answer }}
        {%- endif %}
        {{- '[end]\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '[a]' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<t>\n\n</t>\n\n' }}
    {%- endif %}
{%- endif %}
"#;

#[test]
fn reasoning_template() {
    let old = "<t>\nhm\n</t>\n\nYes.";
    let chat = [("system", "Be brief."), ("user", "Is it?"), ("assistant", old), ("user", "Sure?")];
    let want = "[sys]Be brief.[end]\n[user]Is it?[end]\n[a]Yes.[end]\n[user]Sure?[end]\n[a]";
    assert_eq!(render(REASONING, &chat), want);
    let off = render_with(REASONING, &chat, json!({"enable_thinking": false})).unwrap();
    assert_eq!(off, format!("{want}<t>\n\n</t>\n\n"));
    let on = render_with(REASONING, &chat, json!({"enable_thinking": true})).unwrap();
    assert_eq!(on, want);

    let chat = [("user", "Is it?"), ("user", "<tool>no</tool>"), ("assistant", old)];
    let want = "[user]Is it?[end]\n[user]<tool>no</tool>[end]\n[a]<t>\nhm\n</t>\n\nYes.[end]\n[a]";
    assert_eq!(render(REASONING, &chat), want);
}

/// A template with the constructs that the template of the GLM-4 family uses: macros, tests on types, tojson with
/// arguments.
const MACROS: &str = r#"[pre]<x>
{%- if tools -%}
[sys]{% for tool in tools %}{{ tool | tojson(ensure_ascii=False) }}{% endfor %}
{%- endif -%}
{%- macro plain(content) -%}
    {%- if content is string -%}
        {{- content }}
    {%- elif content is iterable and content is not mapping -%}
        {%- for item in content -%}
            {%- if item is mapping and item.type == 'text' -%}
                {{- item.text }}
            {%- elif item is string -%}
                {{- item }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{- content }}
    {%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(last_user_index=-1) %}
{%- for m in messages %}
    {%- if m.role == 'user' %}
        {% set ns.last_user_index = loop.index0 -%}
    {%- endif %}
{%- endfor %}
{% for m in messages %}
{%- if m['role'] == 'user' -%}<|user|>
{{ plain(m.content) }}
{{- '/off' if (enable_thinking is defined and not enable_thinking and not plain(m.content).endswith("/off")) else '' -}}
{%- elif m.role == 'assistant' -%}
<|assistant|>
{%- if loop.index0 > ns.last_user_index %}{{ '<t>' + plain(m.content).split('</t>')[0].split('<t>')[-1].strip() + '</t>' }}{% else %}<t></t>{% endif %}
{{- '\n' + plain(m.content).split('</t>')[-1].strip() }}
{%- elif m.role == 'system' -%}
<|system|>
{{ plain(m.content) }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    <|assistant|>{{- '\n<t></t>' if (enable_thinking is defined and not enable_thinking) else '' -}}
{%- endif -%}"#;

#[test]
fn macro_template() {
    let chat = [("system", "S"), ("user", "A"), ("assistant", "<t>x</t> one"), ("user", "B/off")];
    let want = "[pre]<x><|system|>\nS<|user|>\nA<|assistant|><t></t>\none<|user|>\nB/off<|assistant|>";
    assert_eq!(render(MACROS, &chat), want);
    let want =
        "[pre]<x><|system|>\nS<|user|>\nA/off<|assistant|><t></t>\none<|user|>\nB/off<|assistant|>\n<t></t>";
    assert_eq!(render_with(MACROS, &chat, json!({"enable_thinking": false})).unwrap(), want);
    let tools = json!({"tools": [{"name": "é", "args": [1, {}]}]});
    assert!(
        render_with(MACROS, &chat, tools)
            .unwrap()
            .starts_with("[pre]<x>[sys]{\"name\": \"é\", \"args\": [1, {}]}")
    );
}

#[rstest]
#[case("{{ bos_token }}|{{ eos_token }}|{{ pad_token }}", "<s>|</s>|")]
#[case("{{ tools is none }}{{ none }}{{ 1 == 2 }}", "TrueNoneFalse")]
#[case("  {% if true %}\n  a\n  {% endif %}\nb\n", "  a\nb")]
#[case("{{ '<&\\'>é' | tojson }}", "\"<&'>é\"")]
#[case("{{ 'é🦀' | tojson(ensure_ascii=true) }}", "\"\\u00e9\\ud83e\\udd80\"")]
#[case("{{ {'b': [1, 2], 'a': none} | tojson }}", "{\"b\": [1, 2], \"a\": null}")]
#[case("{{ {'b': [1], 'a': {}} | tojson(indent=2) }}", "{\n  \"b\": [\n    1\n  ],\n  \"a\": {}\n}")]
#[case(
    "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% elif i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "02"
)]
#[case("{% for k, v in {'z': 1, 'a': 2}.items() %}{{ k }}{{ v }}{% endfor %}", "z1a2")]
#[case("{{ messages | length }}{{ messages[-1]['content'] | trim }}{{ messages[1:] | length }}", "1hi0")]
#[case("{{ ' A b '.strip().lower().replace('b', 'c').upper().title() }}", "A C")]
#[case("{{ messages[0].get('tool_calls') is none }}{{ 'x' if messages[0].tool_calls else 'y' }}", "Truey")]
fn constructs(#[case] source: &str, #[case] want: &str) {
    assert_eq!(render(source, &[("user", " hi ")]), want);
}

#[test]
fn the_date() {
    let year: i32 = render("{{ strftime_now('%Y') }}", &[]).parse().unwrap();
    assert!((2024..2200).contains(&year));
    assert!(matches!(
        render_with("{{ strftime_now('%') }}", &[], json!({})),
        Err(Error::ChatTemplate { .. })
    ));
}

#[test]
fn a_refusal_keeps_the_templates_words() {
    let source = "{% for m in messages %}{{ raise_exception('no ' + m.role + ' here') }}{% endfor %}";
    match render_with(source, &[("cat", "")], json!({})) {
        Err(Error::ChatRefused { message }) => assert_eq!(message, "no cat here"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn failures_are_typed() {
    let endless = "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}";
    for source in [endless, "{{ messages.first.second.third }}", "{{ 'a'.nonsense() }}", "{{ nothing() }}"] {
        assert!(matches!(render_with(source, &[], json!({})), Err(Error::ChatTemplate { .. })), "{source}");
    }
    assert!(matches!(render_with("", &[], json!({"messages": []})), Err(Error::Parameter { .. })));
    let parse = |s: &str| ChatTemplate::from_parts("test", None, Some(s.into()));
    assert!(matches!(parse("{% if %}"), Err(Error::ChatTemplate { .. })));
    assert!(matches!(ChatTemplate::from_parts("test", Some("{}"), None), Err(Error::NoChatTemplate { .. })));
    assert!(matches!(ChatTemplate::from_parts("test", None, None), Err(Error::NoChatTemplate { .. })));
    assert!(matches!(ChatTemplate::from_parts("test", Some("{"), None), Err(Error::Json { .. })));
    for config in [r#"{"chat_template": 1}"#, r#"{"chat_template": [{"name": "rag", "template": ""}]}"#] {
        assert!(matches!(ChatTemplate::from_parts("test", Some(config), None), Err(Error::Field { .. })));
    }
    assert!(matches!(
        parse("{{ 'a' * 10 ** 15 }}").unwrap().render(&ChatRequest::new(&[])),
        Err(Error::ChatTemplate { .. })
    ));
    let config = r#"{"chat_template": "", "bos_token": 1}"#;
    assert!(matches!(ChatTemplate::from_parts("test", Some(config), None), Err(Error::Field { .. })));
}

#[test]
fn where_the_template_comes_from() {
    let dir = tempfile::tempdir().unwrap();
    let request = ChatRequest::new(&[]).with_ending(Ending::Closed);
    let rendered = || ChatTemplate::open(dir.path()).unwrap().render(&request).unwrap();
    let write = |file: &str, text: &str| std::fs::write(dir.path().join(file), text).unwrap();
    assert!(matches!(ChatTemplate::open(dir.path()), Err(Error::NoChatTemplate { .. })));
    write("tokenizer_config.json", r#"{"chat_template": "text"}"#);
    assert_eq!(rendered(), "text");
    let list =
        r#"{"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]}"#;
    write("tokenizer_config.json", list);
    assert_eq!(rendered(), "d");
    write("chat_template.jinja", "file");
    assert_eq!(rendered(), "file");
    let additional = dir.path().join("additional_chat_templates");
    std::fs::create_dir(&additional).unwrap();
    std::fs::write(additional.join("tool_use.jinja"), "tools").unwrap();
    std::fs::write(additional.join("notes.txt"), "{{").unwrap();
    assert_eq!(rendered(), "file");
    let with_tools = || ChatTemplate::open(dir.path()).unwrap().render(&request.with_tools(&[]));
    assert_eq!(with_tools().unwrap(), "tools");
    // A template that does not parse causes an error only when it is used.
    std::fs::write(additional.join("tool_use.jinja"), "{{").unwrap();
    assert_eq!(rendered(), "file");
    assert!(matches!(with_tools(), Err(Error::ChatTemplate { .. })));
}

#[test]
fn templates_by_name() {
    let tools = [json!({"name": "f"})];
    let render = |chat_template: Value, has_tools: bool| {
        let config = json!({"chat_template": chat_template}).to_string();
        let template = ChatTemplate::from_parts("test", Some(&config), None).unwrap();
        assert!(!template.source(has_tools).is_empty());
        let request = ChatRequest::new(&[]);
        template.render(&if has_tools { request.with_tools(&tools) } else { request }).unwrap()
    };
    let map = json!({"default": "d", "tool_use": "{{ tools[0].name }}"});
    let list = json!([{"name": "tool_use", "template": "{{ tools[0].name }}"}, {"name": "default", "template": "d"}]);
    for named in [map, list] {
        assert_eq!((render(named.clone(), false), render(named, true)), ("d".to_owned(), "f".to_owned()));
    }
    assert_eq!(render(json!({"default": "d{{ tools | length }}"}), true), "d1");
    assert_eq!(render(json!("{{ tools is none }}{{ documents is none }}"), false), "TrueTrue");
}

#[test]
fn all_special_tokens_are_variables() {
    let dir = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| std::fs::write(dir.path().join(file), text).unwrap();
    let names = ["bos", "eos", "unk", "sep", "pad", "cls", "mask"];
    let source: String = names.iter().map(|n| format!("{{{{ {n}_token }}}},")).collect();
    write("chat_template.jinja", &(source + "{{ pad_token is defined }}{{ cls_token is defined }}"));
    write(
        "tokenizer_config.json",
        r#"{"bos_token": null, "eos_token": "E", "unk_token": {"content": "U"}, "pad_token": "P"}"#,
    );
    let rendered = || ChatTemplate::open(dir.path()).unwrap().render(&ChatRequest::new(&[])).unwrap();
    assert_eq!(rendered(), ",E,U,,P,,,TrueFalse");
    write(
        "special_tokens_map.json",
        r#"{"eos_token": "other", "mask_token": {"content": "M"}, "sep_token": "S"}"#,
    );
    assert_eq!(rendered(), ",E,U,S,P,,M,TrueFalse");
    write("special_tokens_map.json", "{");
    assert_eq!(rendered(), ",E,U,,P,,,TrueFalse");
}

#[test]
fn messages_keep_every_key() {
    let message = |value: Value| ChatMessage::from_json(value).unwrap();
    let call = |arguments: Value| json!({"type": "function", "id": "c1", "function": {"name": "f", "arguments": arguments}});
    let chat = [
        message(
            json!({"role": "user", "name": "Ann", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]}),
        ),
        message(json!({"role": "assistant", "content": null, "reasoning": "hm", "refusal": null,
            "tool_calls": [call(json!({"x": 1})), call(json!("{\"y\": 2}")), call(json!("")), call(json!("no json"))]})),
        message(json!({"role": "tool", "tool_call_id": "c1", "content": "r"})),
        message(json!({"role": "assistant"})),
    ];
    let source = "{% for m in messages %}{{ m.role }}:{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}:{{ m.name }}{{ m.tool_call_id }}{{ m.reasoning_content }}{{ 'refusal' in m }}{% for c in m.tool_calls or [] %} {{ c.function.arguments | tojson }}{% endfor %};{% endfor %}";
    let want = "user:a b:AnnFalse;assistant::hmFalse {\"x\": 1} {\"y\": 2} {} \"no json\";tool:r:c1False;assistant::False;";
    assert_eq!(template(source).render(&ChatRequest::new(&chat)).unwrap(), want);
    assert_eq!((chat[0].role(), chat[0].text().as_str()), ("user", "a b"));
    assert_eq!(chat[0].clone().with_joined_text().unwrap().get("content"), Some(&json!("a b")));
    let image = message(json!({"role": "user", "content": [{"type": "image"}]}));
    assert!(matches!(image.with_joined_text(), Err(Error::Parameter { .. })));
    let reply = ChatMessage::new("tool", "r").with("tool_call_id", json!("c1")).unwrap();
    assert_eq!(reply, chat[2]);
    for wrong in
        [json!("x"), json!({"content": "x"}), json!({"role": 1}), json!({"role": "user", "content": 5})]
    {
        assert!(matches!(ChatMessage::from_json(wrong), Err(Error::Parameter { .. })));
    }
    let read: Vec<ChatMessage> =
        serde_json::from_str(r#"[{"role": "user", "content": null, "k": 1}]"#).unwrap();
    assert_eq!(serde_json::to_string(&read).unwrap(), r#"[{"role":"user","content":"","k":1}]"#);
    assert!(
        serde_json::from_str::<ChatMessage>(r#"{"role": null}"#).unwrap_err().to_string().contains("role")
    );
}

#[test]
fn the_last_message_goes_on() {
    let source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
    let trimming = source.replace("m.content", "m.content | trim");
    let chat = messages(&[("user", "hi"), ("assistant", "Well, ")]);
    let request = ChatRequest::new(&chat).with_ending(Ending::ContinueLast);
    assert_eq!(template(source).render(&request).unwrap(), "<user>hi</><assistant>Well, ");
    assert_eq!(template(&trimming).render(&request).unwrap(), "<user>hi</><assistant>Well,");
    let closed = ChatRequest::new(&chat).with_ending(Ending::Closed);
    assert_eq!(template(source).render(&closed).unwrap(), "<user>hi</><assistant>Well, </>");
    for (source, chat) in
        [(source, messages(&[])), (source, messages(&[("assistant", "")])), ("x", chat.clone())]
    {
        let request = ChatRequest::new(&chat).with_ending(Ending::ContinueLast);
        assert!(matches!(template(source).render(&request), Err(Error::Parameter { .. })));
    }
}

#[test]
fn line_ends_of_templates_but_not_of_messages() {
    let source = "{% for m in messages %}\r\n<{{ m.role }}>\r\n{{ m.content }}\r\n{% endfor %}\r\nend\r\n";
    assert_eq!(render(source, &[("user", "a\r\nb")]), "<user>\na\r\nb\nend");
}
