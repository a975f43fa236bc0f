//! Templates compared with recordings of Python's Jinja2, and hostile templates.

use rstest::rstest;
use serde::Deserialize;
use serde_json::json;

use super::*;

/// Made by `tests/templates/record.py`.
const RECORDED: &str = include_str!("../../tests/templates/recorded.json");

#[derive(Deserialize)]
struct Recording {
    vars: Map<String, Value>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    text: Option<String>,
    #[serde(default)]
    fails: bool,
    #[serde(default)]
    vars: Map<String, Value>,
}

fn render(source: &str, variables: Value) -> Result<String, TemplateError> {
    Template::parse(source)?.render(variables.as_object().unwrap())
}

#[test]
fn templates_give_what_jinja2_gives() {
    let recording: Recording = serde_json::from_str(RECORDED).unwrap();
    assert!(recording.cases.len() > 1400);
    let mut differing = Vec::new();
    for case in recording.cases {
        let mut variables = recording.vars.clone();
        variables.extend(case.vars);
        let got = Template::parse(&case.template).and_then(|template| template.render(&variables));
        let same = if case.fails { got.is_err() } else { got.as_ref().ok() == case.text.as_ref() };
        if !same {
            differing.push(format!("{:?}: expected {:?}, got {got:?}", case.template, case.text));
        }
    }
    assert!(differing.is_empty(), "{} differ:\n{}", differing.len(), differing.join("\n"));
}

/// Checks that the template ends with an error that names a limit.
fn is_bounded(source: &str) {
    match render(source, json!({"messages": [{"role": "user", "content": "x"}]})) {
        Err(TemplateError::TooLarge { .. }) => {}
        other => {
            let told = format!("{other:?}");
            panic!("{:.200}: {:.200}", source, told);
        }
    }
}

#[rstest]
#[case::text_that_doubles(
    "{% set ns = namespace(x='a') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
)]
#[case::text_that_doubles_in_a_block(
    "{% set ns = namespace(x='a') %}{% for i in range(40) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}"
)]
#[case::lists_that_double(
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}"
)]
#[case::shared_lists(
    "{% set ns = namespace(x=[1]) %}{% for i in range(100) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}"
)]
#[case::shared_lists_compared(
    "{% set a = namespace(x=[1]) %}{% set b = namespace(x=[1]) %}{% for i in range(100) %}{% set a.x = [a.x, a.x] %}{% set b.x = [b.x, b.x] %}{% endfor %}{{ a.x == b.x }}"
)]
#[case::shared_tuples_as_keys(
    "{% set ns = namespace(x=(1,)) %}{% for i in range(100) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}{{ {ns.x: 1} }}"
)]
#[case::lists_within_lists(
    "{% set ns = namespace(x=1) %}{% for i in range(33000) %}{% set ns.x = [ns.x] %}{% endfor %}"
)]
#[case::streams_within_streams(
    "{% set ns = namespace(x=[1]) %}{% for i in range(33000) %}{% set ns.x = [ns.x] | select %}{% endfor %}"
)]
#[case::methods_within_dicts(
    "{% set ns = namespace(x={}) %}{% for i in range(33000) %}{% set ns.x = {'a': ns.x.get} %}{% endfor %}"
)]
#[case::a_namespace_in_itself("{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}")]
#[case::a_namespace_in_a_list_in_itself("{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns.x }}")]
#[case::endless_loops("{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}")]
#[case::recursion("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}")]
#[case::recursion_with_text("{% macro f(x) %}{{ x }}{{ f(x ~ x) }}{% endmacro %}{{ f('aaaa') }}")]
#[case::recursion_of_a_loop("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}")]
#[case::repetition("{{ 'a' * 10 ** 15 }}")]
#[case::repetition_of_a_list("{{ [1] * 10 ** 15 }}")]
#[case::batch("{{ [1] | batch(10 ** 15, 'x') | list }}")]
#[case::slice("{{ [1] | slice(10 ** 15) | list }}")]
#[case::percent_width("{{ '%999999999999d' % 1 }}")]
#[case::percent_star("{{ '%*d' % (10 ** 15, 1) }}")]
#[case::percent_precision("{{ '%.999999999999f' % 1.5 }}")]
#[case::format_width("{{ '{:999999999999}'.format(1) }}")]
#[case::indent("{{ 'a\nb' | indent(10 ** 15) }}")]
#[case::center("{{ 'a' | center(10 ** 15) }}")]
#[case::zfill("{{ 'a'.zfill(10 ** 15) }}")]
#[case::expandtabs("{{ '\t'.expandtabs(10 ** 15) }}")]
#[case::replace("{{ ('a' * 100000).replace('', 'b' * 100000) }}")]
#[case::join("{{ ('b' * 10000).join('a' * 100000) }}")]
#[case::json_indent("{{ [1] | tojson(indent=10 ** 15) }}")]
#[case::characters("{{ ('a' * 40000000) | list }}")]
#[case::lines("{{ ('\n' * 40000000).splitlines() }}")]
#[case::sorts("{% for i in range(1000) %}{{ range(100000) | sort | length }}{% endfor %}")]
#[case::searches("{% for i in range(100000) %}{{ 99999 in range(100000) }}{% endfor %}")]
#[case::wide_numbers("{{ 10 ** 100 }}")]
fn harm_is_bounded(#[case] source: &str) {
    is_bounded(source);
}

#[test]
fn long_expressions_and_lines_are_bounded() {
    for source in [
        format!("{{{{ 1{} }}}}", "+1".repeat(18_065)),
        format!("{{{{ {}1 }}}}", "not ".repeat(18_065)),
        format!("{{{{ {}1 }}}}", "-".repeat(18_065)),
        format!("{{{{ {}1{} }}}}", "(".repeat(18_065), ")".repeat(18_065)),
        format!("{{{{ a{} }}}}", ".b".repeat(18_065)),
        format!("{{{{ a{} }}}}", "()".repeat(18_065)),
        format!("{{{{ a{} }}}}", "|e".repeat(18_065)),
        format!("{{{{ 1{} }}}}", " if 1 else 1".repeat(18_065)),
        "{% if 1 %}".repeat(5_000) + &"{% endif %}".repeat(5_000),
        "{% for x in y %}".repeat(5_000) + &"{% endfor %}".repeat(5_000),
        "a".repeat(MAX_SOURCE_BYTES + 1),
    ] {
        is_bounded(&source);
    }
    // A wide expression is not deep.
    assert_eq!(render(&format!("{{{{ 1{} }}}}", "~1".repeat(18_065)), json!({})).unwrap().len(), 18_066);
    let error = render(&"{% raw %}".repeat(7_400), json!({})).unwrap_err();
    assert_eq!(error, TemplateError::Syntax { line: 1, message: "Missing end of raw directive".into() });
}

#[test]
fn what_holds_itself_is_freed() {
    // Namespaces, macros and their scopes in cycles. A leak would be found by a leak checker, and dropping a long chain
    // recursively would overflow the stack.
    let chain = "{% set ns = namespace() %}{% for i in range(30000) %}{% set n = namespace(x=ns.x) %}{% set ns.x = n %}{% endfor %}ok";
    assert_eq!(render(chain, json!({})).unwrap(), "ok");
    let macros = "{% set ns = namespace() %}{% for i in range(9000) %}{% macro f() %}{{ i }}{% endmacro %}{% set ns.f = f %}{% endfor %}{{ ns.f() }}";
    assert_eq!(render(macros, json!({})).unwrap(), "8999");
    let loops = "{% set ns = namespace(x=1) %}{% for i in range(9000) %}{% for j in [ns.x] %}{% set ns.x = loop %}{% endfor %}{% endfor %}ok";
    assert_eq!(render(loops, json!({})).unwrap(), "ok");
}

#[test]
fn long_conversations_fit() {
    let message = json!({"role": "user", "content": "word ".repeat(400)});
    let messages = vec![message; 2_000];
    let source = "{% for m in messages %}{% set c = m.content | trim %}{{ '<' + m.role + '>' + c + '</>' }}{% endfor %}";
    let text = render(source, json!({ "messages": messages })).unwrap();
    assert_eq!(text.len(), 2_000 * (1_999 + 9));
}

#[test]
fn errors_tell_the_line() {
    let line = |source: &str| match render(source, json!({"m": {}})) {
        Err(TemplateError::Syntax { line, .. } | TemplateError::Failed { line, .. }) => line,
        other => panic!("{other:?}"),
    };
    assert_eq!(line("a\nb\n{{ m.x.y }}"), 3);
    assert_eq!(line("a\n{% if m %}{% endif %}\n\n{% nonsense %}"), 4);
    assert_eq!(line("{% if 1 %}\n{{ 1 + 'a' }}\n{% endif %}"), 2);
    assert_eq!(line("{{\n\n 1 1 }}"), 3);
    assert_eq!(line("a\r\nb\r\n{{ m.x.y }}"), 3);
}

#[test]
fn messages_are_short_and_typed() {
    let raised = |source: &str| match render(source, json!({})) {
        Err(TemplateError::Raised { message }) => message,
        other => panic!("{other:?}"),
    };
    assert_eq!(raised("{{ raise_exception('no ' ~ 1) }}"), "no 1");
    assert_eq!(raised("{{ raise_exception('a' * 100000) }}").chars().count(), 2_001);
    assert_eq!(render("{{ strftime_now('%Y-%m-%d') }}", json!({})).unwrap().len(), 10);
}
