//! How text from files is handled: templates, tokenizers, end tokens, and escapes for the terminal.

use serde_json::json;

use crate::*;

fn chat(dir: &tempfile::TempDir, template: &str) -> Run {
    std::fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    zmlx(&["generate", "--model", dir.path().to_str().unwrap(), "-p", "Hello", "-m", "1"])
}

#[test]
fn nothing_is_printed_beside_an_error() {
    let dir = model(QWEN);
    zmlx(&["generate", "--model", &dir, "--prompt-tokens", "3072", "-m", "1"]).refused(&["error: ", "3072"]);
    let long = join(&[5; 2_100]);
    zmlx(&["generate", "--model", &dir, "--prompt-tokens", &long, "-m", "1"]).refused(&["error: "]);
}

#[test]
fn templates_that_mean_harm_are_refused() {
    let dir = copy_without(QWEN, &[]);
    for (template, tells) in [
        ("{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}", "the template takes more than"),
        ("{{ 'a' * 10 ** 15 }}", "the template takes more than"),
        ("{% for m in messages %}{{ loop.cycle() }}{% endfor %}", "line 1: no items for cycling given"),
        ("{{ raise_exception('no way') }}", "refuses this conversation: no way"),
    ] {
        chat(&dir, template).refused(&["error: ", tells]);
    }
    chat(&dir, &"{% raw %}".repeat(7_400)).refused(&["Missing end of raw"]);
    chat(&dir, "{{ 'abc'.count('') }}").ok();
}

#[test]
fn tokenizers_that_mean_harm_are_refused() {
    let dir = copy_without(QWEN, &[]);
    let path = dir.path().to_str().unwrap();
    let whole = std::fs::read_to_string(dir.path().join("tokenizer.json")).unwrap();
    for normalizer in [
        json!({"type": "Precompiled", "precompiled_charsmap": "x"}),
        json!({"type": "Replace", "pattern": {"String": ""}, "content": "y"}),
    ] {
        std::fs::write(dir.path().join("tokenizer.json"), &whole).unwrap();
        edit_json(dir.path(), "tokenizer.json", |t| t["normalizer"] = normalizer);
        zmlx(&["generate", "--model", path, "-p", "It is", "-m", "1"])
            .refused(&["error: ", "tokenizer.json: "]);
    }
    let cut = whole.find("\"decoder\"").unwrap() + 20;
    std::fs::write(dir.path().join("tokenizer.json"), &whole[..cut]).unwrap();
    zmlx(&["generate", "--model", path, "-p", "It is", "-m", "1"]).refused(&["error: ", "tokenizer.json: "]);
}

#[test]
fn control_characters_of_files_do_not_reach_a_terminal() {
    let dir = copy_without(QWEN, &[]);
    let run = chat(&dir, "{{ raise_exception('\\x1b[2J\\x1b]0;owned\\x07\\x9b\\r') }}");
    assert!(run.stderr.contains("\\u{1b}[2J\\u{1b}]0;owned\\u{7}\\u{9b}\\u{d}"), "{run:?}");
    assert!(!run.stderr.contains(|c: char| c.is_control() && c != '\n'), "{run:?}");
}

#[test]
fn logs_have_no_colours_where_nobody_sees_them() {
    let dir = copy_without(QWEN, &[]);
    std::fs::write(dir.path().join("generation_config.json"), "{\"eos_token_id\": 1,}").unwrap();
    let path = dir.path().to_str().unwrap();
    let mut run = command(&["generate", "--model", path, "--prompt-tokens", "5", "-m", "1"]);
    let run = finish(run.env_remove("NO_COLOR")).ok();
    assert!(
        run.stderr.contains("WARN") && run.stderr.contains("generation_config.json: not valid JSON"),
        "{run:?}"
    );
    assert!(!run.stderr.contains('\u{1b}'), "{run:?}");
}

#[test]
fn messages_in_a_file_keep_every_key() {
    let dir = copy_without(QWEN, &[]);
    let template = "{% for m in messages %}{{ m.role }}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}{{ tools[0].name }}{{ extra }}";
    std::fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    let prompts = json!([{
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": "{\"a\": 1}"}}]}
        ],
        "tools": [{"name": "f"}],
        "chat_template_kwargs": {"extra": 7}
    }]);
    let file = dir.path().join("prompts.json");
    std::fs::write(&file, prompts.to_string()).unwrap();
    let out = dir.path().join("golden.json");
    let [path, file, out] = [dir.path(), &file, &out].map(|p| p.to_str().unwrap());
    zmlx(&["golden", "record", "--model", path, "--prompts", file, "-m", "1", "-o", out]).ok();
    let recorded: Value = serde_json::from_slice(&std::fs::read(out).unwrap()).unwrap();
    assert_eq!(recorded["prompts"][0]["text"], "userhiassistant{\"a\": 1}f7");
}
