//! `zmlx chat` over a pipe.

use crate::*;

fn chat(dir: &str, more: &[&str], lines: &str) -> Run {
    zmlx_with_stdin(&[&["chat", "--model", dir, "-m", "12", "--ignore-eos"], more].concat(), lines.as_bytes())
}

#[test]
fn the_first_answer_is_that_of_generate() {
    let dir = model(QWEN);
    let golden = golden(QWEN);
    let user = &golden.prompt("chat").unwrap().messages.as_ref().unwrap()[0].content;
    let args = ["generate", "--json", "--chat", "--model", &dir, "-p", user, "-m", "12", "--ignore-eos"];
    let want = zmlx(&args).ok().json();
    let run = chat(&dir, &[], &format!("{user}\n")).ok();
    assert_eq!(run.stdout, format!("{}\n", want["text"].as_str().unwrap()));
    assert_eq!(run.stderr, "");
}

#[test]
fn history_grows_on_the_cache_and_can_be_forgotten() {
    let dir = model(GLM);
    let one = chat(&dir, &[], "Tell me of Mr. Darcy.").ok().stdout;
    let run =
        chat(&dir, &["-v"], "Tell me of Mr. Darcy.\n\nAnd of Jane?\n/reset\nTell me of Mr. Darcy.\n").ok();
    assert!(run.stdout.starts_with(&one) && run.stdout.ends_with(&one), "{one:?} {run:#?}");
    assert!(run.stdout.len() > 2 * one.len());
    let cached: Vec<usize> = run
        .stderr
        .lines()
        .filter_map(|l| l.split_once(" tokens (")?.1.split_once(" of them cached")?.0.parse().ok())
        .collect();
    assert_eq!(cached.len(), 3, "{}", run.stderr);
    assert_eq!(cached[0], 0);
    // The first prompt and its answer are not computed again.
    assert!(cached[1] > 12, "{cached:?}");
    // After /reset the beginning of the prompt is the same. All of it is cached, except for the last token, whose
    // logits are needed.
    assert!(cached[2] > 0, "{cached:?}");
}

#[test]
fn what_is_cached_gives_what_is_computed_anew() {
    // The second answer must be the same, with the cache and from the whole conversation as one prompt.
    let dir = model(GLM);
    let both = chat(&dir, &[], "Where is Jane?\nAnd Lydia?\n").ok().stdout;
    let first = chat(&dir, &[], "Where is Jane?\n").ok().stdout;
    let second = both.strip_prefix(&first).unwrap();
    let turn = |role: &str, text: &str| format!("<|im_start|>{role}\n{text}<|im_end|>\n");
    let history = turn("user", "Where is Jane?") + &turn("assistant", first.strip_suffix('\n').unwrap());
    let prompt = history + &turn("user", "And Lydia?") + "<|im_start|>assistant\n";
    let args = ["generate", "--json", "--model", &dir, "--raw", "-p", &prompt, "-m", "12", "--ignore-eos"];
    assert_eq!(second, format!("{}\n", zmlx(&args).ok().json()["text"].as_str().unwrap()));
}

#[test]
fn exit_ends_it_and_errors_are_told() {
    let dir = model(GLM);
    let run = chat(&dir, &[], "/exit\nNot answered.\n").ok();
    assert_eq!(run.stdout, "");
    assert_eq!(chat(&dir, &[], "").ok().stdout, "");
    chat(&dir, &[], &"long ".repeat(3000)).refused(&["max_position_embeddings"]);
    let bytes = zmlx_with_stdin(&["chat", "--model", &dir], b"\xff\n");
    bytes.refused(&["stdin"]);
}

#[test]
fn commands_change_what_comes_next() {
    let dir = model(GLM);
    let first = chat(&dir, &[], "Where is Jane?\n").ok().stdout;
    // Taken back and entered again, or answered again: without a temperature the answer is the same.
    assert_eq!(chat(&dir, &[], "Where is Jane?\n/retry\n").ok().stdout, format!("{first}{first}"));
    let run = chat(&dir, &[], "Where is Jane?\n/undo\nWhere is Jane?\n").ok();
    assert_eq!(run.stdout, format!("{first}{first}"));
    assert_eq!(run.stderr, "taken back: Where is Jane?\n");
    // Settings, and a system message as the flag gives it.
    let short = ["chat", "--model", &dir, "-m", "3", "--ignore-eos"];
    let short = zmlx_with_stdin(&short, b"Where is Jane?\n").ok().stdout;
    assert_eq!(chat(&dir, &[], "/set max_tokens 3\nWhere is Jane?\n").ok().stdout, short);
    let flag = chat(&dir, &["--system", "Be brief."], "Where is Jane?\n").ok().stdout;
    assert_eq!(chat(&dir, &[], "/system Be brief.\nWhere is Jane?\n").ok().stdout, flag);
    assert_ne!(flag, first);
    assert!(chat(&dir, &[], "/help\n/set\n/stats\n").ok().stdout.contains("/retry"));
}

#[test]
fn another_attempt_is_another_answer() {
    let args = ["--temp", "1.5", "--seed", "7"];
    let run = chat(&model(GLM), &args, "Where is Jane?\n/retry\n").ok().stdout;
    let first = chat(&model(GLM), &args, "Where is Jane?\n").ok().stdout;
    let second = run.strip_prefix(&first).unwrap();
    assert_ne!(second, first);
    assert_eq!(chat(&model(GLM), &args, "Where is Jane?\n/retry\n").ok().stdout, run);
}

#[test]
fn a_conversation_goes_on_from_a_file() {
    let dir = model(GLM);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("talk.json");
    let file = file.to_str().unwrap();
    let whole = chat(&dir, &["--system", "Be brief."], "Where is Jane?\nAnd Lydia?\n").ok().stdout;
    let save = format!("/set temp 0\nWhere is Jane?\n/save {file}\n");
    let begun = chat(&dir, &["--system", "Be brief."], &save).ok().stdout;
    let run = chat(&dir, &["--temp", "1"], &format!("/load {file}\nAnd Lydia?\n")).ok();
    assert_eq!(begun + &run.stdout, whole);
    // A file of another model is reported. An invalid file is refused, and the conversation stays as it was.
    let other = chat(&model(QWEN), &[], &format!("/load {file}\n")).ok();
    assert!(other.stderr.contains("this was a conversation with"), "{}", other.stderr);
    std::fs::write(file, "{").unwrap();
    chat(&dir, &[], &format!("/load {file}\n")).refused(&["talk.json"]);
    chat(&dir, &[], "/save /nowhere/talk.json\n").refused(&["/nowhere"]);
    chat(&dir, &[], "/nonsense\n").refused(&["/nonsense", "/help"]);
    chat(&dir, &[], "/set temp -1\n").refused(&["temperature"]);
}

#[test]
fn the_repetition_penalty_sees_the_whole_conversation() {
    // The second answer must be the same, on the cache and from the whole conversation as one prompt.
    let dir = model(GLM);
    let penalty = ["--repetition-penalty", "1.5", "--repetition-context-size", "1000"];
    let both = chat(&dir, &penalty, "Where is Jane?\nAnd Lydia?\n").ok().stdout;
    let first = chat(&dir, &penalty, "Where is Jane?\n").ok().stdout;
    let second = both.strip_prefix(&first).unwrap();
    let turn = |role: &str, text: &str| format!("<|im_start|>{role}\n{text}<|im_end|>\n");
    let history = turn("user", "Where is Jane?") + &turn("assistant", first.strip_suffix('\n').unwrap());
    let prompt = history + &turn("user", "And Lydia?") + "<|im_start|>assistant\n";
    let args = ["generate", "--raw", "--json", "--model", &dir, "-p", &prompt, "-m", "12", "--ignore-eos"];
    let text =
        |more: &[&str]| zmlx(&[&args[..], more].concat()).ok().json()["text"].as_str().unwrap().to_owned();
    assert_eq!(second, format!("{}\n", text(&penalty)));
    // The penalty must see more than the last tokens to have this effect.
    assert_ne!(text(&penalty), text(&["--repetition-penalty", "1.5", "--repetition-context-size", "2"]));
}

#[test]
fn thinking_is_left_out_on_demand() {
    let dir = copy_without(GLM, &[]);
    let path = dir.path().join("chat_template.jinja");
    let template = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, template + "{% if add_generation_prompt %}<think>\n{% endif %}").unwrap();
    let dir = dir.path().to_str().unwrap();
    // All of it is thinking, which the model never ends.
    assert!(chat(dir, &[], "Where is Jane?\n").ok().stdout.len() > 10);
    assert_eq!(chat(dir, &["--hide-thinking"], "Where is Jane?\n").ok().stdout, "\n");
}

#[test]
fn a_message_may_have_several_lines() {
    let dir = model(GLM);
    let want = chat(&dir, &[], "\"\"\"one\ntwo\"\"\"\n").ok().stdout;
    assert_eq!(chat(&dir, &[], "one\\\ntwo\n").ok().stdout, want);
    // The input may end before the closing quotes.
    assert_eq!(chat(&dir, &[], "\"\"\"one\ntwo").ok().stdout, want);
    assert_ne!(chat(&dir, &[], "one\n").ok().stdout, want);
}
