//! `zmlx generate`.

use serde_json::json;

use crate::*;

#[test]
#[cfg(feature = "embedded-model")]
fn without_arguments_the_novel_goes_on() {
    let run = zmlx(&["generate"]).ok();
    let want = &golden(GLM).prompt("novel").unwrap().truth_f32.output_text.clone();
    let mut blocks = run.stdout.split("==========\n");
    assert_eq!(blocks.next(), Some(""));
    let text = blocks.next().unwrap();
    assert!(text.starts_with(want.as_str()), "{text}");
    assert!(text.ends_with('\n'));
    let statistics: Vec<&str> = blocks.next().unwrap().lines().collect();
    assert_eq!(blocks.next(), None);
    assert!(statistics[0].starts_with("Prompt: 64 tokens, ") && statistics[0].ends_with(" tokens-per-sec"));
    assert!(statistics[1].starts_with("Generation: 100 tokens, "), "{statistics:?}");
    if cfg!(unix) {
        assert!(statistics[2].starts_with("Peak memory: 0.") && statistics[2].ends_with(" GB"));
    }
    assert_eq!(run.stderr, "");
}

#[test]
fn json_holds_the_recorded_tokens() {
    for name in [GLM, QWEN] {
        let golden = golden(name);
        for prompt in ["novel", "unicode", "one_token"] {
            let want = golden.prompt(prompt).unwrap();
            let args =
                ["generate", "--json", "--ignore-eos", "-m", "96", "--model", &model(name), "-p", &want.text];
            let run = zmlx(&args).ok();
            let got = run.json();
            let keys: Vec<&String> = got.as_object().unwrap().keys().collect();
            let wanted_keys = [
                "prompt_tokens",
                "tokens",
                "text",
                "prompt_tps",
                "generation_tps",
                "peak_memory_bytes",
                "stop_reason",
            ];
            assert_eq!(keys, wanted_keys);
            assert_eq!(got["prompt_tokens"], json!(want.prompt_tokens));
            assert_eq!(got["tokens"], json!(want.truth_f32.tokens), "{name} {prompt}");
            assert_eq!(got["stop_reason"], "length");
            assert!(got["prompt_tps"].as_f64().unwrap() > 0.0);
            assert_eq!(run.stdout.lines().count(), 1);
        }
    }
}

#[test]
fn every_fusion_gives_the_recorded_tokens() {
    for name in [GLM, QWEN] {
        let golden = golden(name);
        let want = golden.prompt("truth").unwrap();
        for fusion in ["stock", "concat", "fused", "fused,-route,-combine", "stock,+qkv"] {
            let (dir, prompt) = (model(name), join(&want.prompt_tokens));
            let args = ["generate", "--json", "--ignore-eos", "-m", "24", "--fusion", fusion];
            let run = zmlx(&[&args[..], &["--model", &dir, "--prompt-tokens", &prompt]].concat()).ok();
            assert_eq!(run.json()["tokens"], json!(want.truth_f32.tokens[..24]), "{name} {fusion}");
        }
    }
}

#[test]
fn tokens_need_no_tokenizer() {
    let dir = copy_without(GLM, &["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]);
    let dir = dir.path().to_str().unwrap();
    let golden = golden(GLM);
    let want = golden.prompt("novel").unwrap();
    let tokens = join(&want.prompt_tokens);
    let args = ["generate", "--model", dir, "--prompt-tokens", &tokens, "-m", "8"];
    let got = zmlx(&[&args[..], &["--json"]].concat()).ok().json();
    assert_eq!(got["tokens"], json!(want.truth_f32.tokens[..8]));
    assert_eq!(got["text"], "");
    // Without JSON the tokens themselves are shown.
    let shown = want.truth_f32.tokens[..8].iter().map(|t| format!("{t} ")).collect::<String>();
    assert!(zmlx(&args).ok().stdout.contains(&shown));

    zmlx(&["generate", "--model", dir, "-p", "x"]).refused(&["tokenizer.json"]);
    let stop = ["--stop", "x", "--json"];
    zmlx(&[&args[..], &stop].concat()).refused(&["stop"]);
}

#[test]
fn seeds_are_reproducible() {
    let dir = model(GLM);
    let tokens = |seed: &str| {
        let args = ["generate", "--model", &dir, "--json", "-p", "Elizabeth", "-m", "24", "--ignore-eos"];
        let sampling =
            ["--temp", "1.2", "--top-k", "50", "--top-p", "0.95", "--min-p", "0.01", "--seed", seed];
        zmlx(&[&args[..], &sampling].concat()).ok().json()["tokens"].clone()
    };
    assert_eq!(tokens("7"), tokens("7"));
    assert_ne!(tokens("7"), tokens("8"));
}

#[test]
fn a_repetition_penalty_changes_the_text() {
    let dir = model(GLM);
    let args =
        ["generate", "--model", &dir, "--json", "-p", "said she, said she, said she, said", "-m", "16"];
    let plain = zmlx(&args).ok().json();
    let penalty = ["--repetition-penalty", "5", "--repetition-context-size", "64"];
    let penalised = zmlx(&[&args[..], &penalty].concat()).ok().json();
    assert_ne!(plain["tokens"], penalised["tokens"]);
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let dir = model(GLM);
    let golden = golden(GLM);
    let want = golden.prompt("novel").unwrap();
    let (before, _) = want.truth_f32.output_text.split_once("Netherfield").unwrap();
    let args = ["generate", "--model", &dir, "--stop", "never said", "--stop", "Netherfield"];
    let got = zmlx(&[&args[..], &["--json"]].concat()).ok().json();
    assert_eq!(got["text"], before);
    assert_eq!(got["stop_reason"], "stop");
    let shown = zmlx(&args).ok().stdout;
    assert!(shown.starts_with(&format!("==========\n{before}\n==========\nPrompt: ")), "{shown}");
}

#[test]
fn an_end_token_ends_the_text() {
    let dir = copy_without(GLM, &[]);
    let golden = golden(GLM);
    let want = golden.prompt("novel").unwrap();
    let (text, end) = (&want.text, want.truth_f32.tokens[5]);
    let n_tokens = 1 + want.truth_f32.tokens.iter().position(|&t| t == end).unwrap();
    edit_json(dir.path(), "generation_config.json", |c| c["eos_token_id"] = json!(end));
    let args = ["generate", "--json", "--model", dir.path().to_str().unwrap(), "-p", text, "-m", "96"];
    let got = zmlx(&args).ok().json();
    assert_eq!(got["tokens"], json!(want.truth_f32.tokens[..n_tokens]));
    assert_eq!(got["stop_reason"], "eos");
    assert!(want.truth_f32.output_text.starts_with(got["text"].as_str().unwrap()));
    let got = zmlx(&[&args[..], &["--ignore-eos"]].concat()).ok().json();
    assert_eq!(got["tokens"], json!(want.truth_f32.tokens));
}

#[test]
fn the_prompt_may_come_from_stdin() {
    let dir = model(QWEN);
    let golden = golden(QWEN);
    let want = golden.prompt("unicode").unwrap();
    let args = ["generate", "--json", "--model", &dir, "-p", "-", "-m", "4", "--ignore-eos"];
    let got = zmlx_with_stdin(&args, want.text.as_bytes()).ok().json();
    assert_eq!(got["prompt_tokens"], json!(want.prompt_tokens));
    assert_eq!(got["tokens"], json!(want.truth_f32.tokens[..4]));
    zmlx_with_stdin(&args, b"\xff\xfe").refused(&["stdin", "UTF-8"]);
    zmlx_with_stdin(&args, b"").refused(&["the prompt is empty"]);
}

#[test]
fn the_chat_template_wraps_the_prompt() {
    let golden = golden(QWEN);
    let want = golden.prompt("chat").unwrap();
    let user = &want.messages.as_ref().unwrap()[0].content;
    let dir = model(QWEN);
    let args = ["generate", "--json", "--model", &dir, "--chat", "-p", user, "-m", "8", "--ignore-eos"];
    let got = zmlx(&args).ok().json();
    assert_eq!(got["prompt_tokens"], json!(want.prompt_tokens));
    assert_eq!(got["tokens"], json!(want.truth_f32.tokens[..8]));
    let longer = zmlx(&[&args[..], &["--system", "Be brief."]].concat()).ok().json();
    assert!(longer["prompt_tokens"].as_array().unwrap().len() > want.prompt_tokens.len());
}

#[test]
fn zero_tokens_and_a_full_context() {
    let dir = copy_without(GLM, &[]);
    edit_json(dir.path(), "config.json", |c| c["max_position_embeddings"] = json!(12));
    let dir = dir.path().to_str().unwrap();
    let args = |prompt| ["generate", "--json", "--ignore-eos", "--model", dir, "--prompt-tokens", prompt];
    let got = zmlx(&[&args("5,6,7")[..], &["-m", "0"]].concat()).ok().json();
    assert_eq!((&got["tokens"], &got["stop_reason"]), (&json!([]), &json!("length")));
    let got = zmlx(&args("5,6,7")).ok().json();
    assert_eq!((got["tokens"].as_array().unwrap().len(), &got["stop_reason"]), (10, &json!("context")));
    zmlx(&args("1,2,3,4,5,6,7,8,9,10,11,12,13")).refused(&["13 tokens", "max_position_embeddings", "12"]);
}

#[test]
fn verbose_explains_on_stderr() {
    let dir = model(GLM);
    let run = zmlx(&["generate", "--model", &dir, "-m", "2", "-v", "--json"]).ok();
    for text in ["Backend: cpu (", "1 thread)", "Fusion: fused", "Load time: ", "Stop reason: length"] {
        assert!(run.stderr.contains(text), "{text:?} is not in {}", run.stderr);
    }
    run.json();
}

#[test]
#[cfg(unix)]
fn a_reader_that_goes_away_ends_it_quietly() {
    use std::io::Read;
    let dir = model(GLM);
    let mut child = command(&["generate", "--model", &dir, "-m", "1500", "--ignore-eos"]).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 5]).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

#[test]
#[cfg(unix)]
fn ctrl_c_ends_it_with_statistics() {
    use std::io::Read;
    let dir = model(GLM);
    let mut child =
        command(&["generate", "--model", &dir, "-m", "1900", "--ignore-eos", "-v"]).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    // The rule and some text: the first token has come.
    stdout.read_exact(&mut [0; 40]).unwrap();
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(rest.contains("\n==========\nPrompt: 64 tokens, "), "{rest}");
    assert!(String::from_utf8(output.stderr).unwrap().contains("Stop reason: interrupted"));
}
