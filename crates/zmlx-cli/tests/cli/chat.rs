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
    let args = ["generate", "--json", "--model", &dir, "-p", user, "-m", "12", "--ignore-eos"];
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
    // After /reset the beginning is the same, but for the last token, whose logits are needed.
    assert!(cached[2] > 0, "{cached:?}");
}

#[test]
fn what_is_cached_gives_what_is_computed_anew() {
    // The second answer, with the cache and from the whole conversation as one prompt.
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
