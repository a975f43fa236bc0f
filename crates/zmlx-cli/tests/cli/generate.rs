//! `zmlx generate`.

use serde_json::json;

use crate::*;

#[test]
#[cfg(feature = "embedded-model")]
fn without_arguments_the_novel_goes_on() {
    let run = zmlx(&["generate"]).ok();
    let want = &golden(GLM).prompt("novel").unwrap().truth_f32.output_text.clone();
    // A pipe gets only the generated text.
    assert!(run.stdout.starts_with(want.as_str()) && run.stdout.ends_with('\n'), "{}", run.stdout);
    let is_statistics = |text: &str| {
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0].starts_with("Prompt: 64 tokens, ") && lines[0].ends_with(" tokens-per-sec"),
            "{text}"
        );
        assert!(lines[1].starts_with("Generation: 100 tokens, "), "{text}");
        if cfg!(unix) {
            assert!(lines[2].starts_with("Peak memory: 0.") && lines[2].ends_with(" GB"), "{text}");
        }
        assert_eq!(lines.len(), if cfg!(unix) { 3 } else { 2 });
    };
    is_statistics(&run.stderr);
    // The format of mlx_lm.generate.
    let stats = zmlx(&["generate", "--stats"]).ok();
    let mut blocks = stats.stdout.split("==========\n");
    assert_eq!((blocks.next(), blocks.next()), (Some(""), Some(run.stdout.as_str())));
    is_statistics(blocks.next().unwrap());
    assert_eq!((blocks.next(), stats.stderr.as_str()), (None, ""));
    let quiet = zmlx(&["generate", "-q"]).ok();
    assert_eq!((quiet.stdout, quiet.stderr.as_str()), (run.stdout, ""));
}

/// The peak memory does not include the memory that the process used before it executed the command: here a shell with
/// a variable of 100 MB.
#[test]
#[cfg(target_os = "linux")]
fn the_peak_memory_is_the_commands_own() {
    let script = r#"v=$(head -c 100000000 /dev/zero | tr '\0' a); exec "$0" "$@""#;
    let mut shell = Command::new("sh");
    shell.args([
        "-c",
        script,
        env!("CARGO_BIN_EXE_zmlx"),
        "generate",
        "--json",
        &model(GLM),
        "-m",
        "1",
        "-p",
        "It",
    ]);
    let peak = finish(&mut shell).ok().json()["peak_memory_bytes"].as_u64().unwrap();
    assert!(peak < 100_000_000, "{peak}");
}

#[test]
fn a_model_is_named_with_or_without_a_flag() {
    let dir = model(QWEN);
    let args = ["--json", "-p", "It is", "-m", "2"];
    let positional = zmlx(&[&["generate", &dir], &args[..]].concat()).ok().json();
    let flag = zmlx(&[&["generate", "--model", &dir], &args[..]].concat()).ok().json();
    assert_eq!(positional["tokens"], flag["tokens"]);
    zmlx(&["generate", &dir, "--model", &dir]).refused(&["--model"]);
}

#[test]
fn minus_one_token_is_no_limit() {
    let dir = copy_without(GLM, &[]);
    edit_json(dir.path(), "config.json", |c| c["max_position_embeddings"] = json!(130));
    let dir = dir.path().to_str().unwrap();
    let args = ["generate", dir, "--json", "--ignore-eos", "-m", "-1", "--prompt-tokens", "5,6"];
    let got = zmlx(&args).ok().json();
    assert_eq!((got["tokens"].as_array().unwrap().len(), &got["stop_reason"]), (129, &json!("context")));
}

#[test]
fn json_holds_the_recorded_tokens() {
    for name in [GLM, QWEN] {
        let golden = golden(name);
        for prompt in ["novel", "unicode", "one_token"] {
            let want = golden.prompt(prompt).unwrap();
            let args =
                ["generate", "--json", "--raw", "--ignore-eos", "-m", "96", &model(name), "-p", &want.text];
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
    // Without JSON the tokens themselves are printed.
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
    assert_eq!(shown, format!("{before}\n"));
}

#[test]
fn an_end_token_ends_the_text() {
    let dir = copy_without(GLM, &[]);
    let golden = golden(GLM);
    let want = golden.prompt("novel").unwrap();
    let (text, end) = (&want.text, want.truth_f32.tokens[5]);
    let n_tokens = 1 + want.truth_f32.tokens.iter().position(|&t| t == end).unwrap();
    edit_json(dir.path(), "generation_config.json", |c| c["eos_token_id"] = json!(end));
    let args =
        ["generate", "--json", "--raw", "--model", dir.path().to_str().unwrap(), "-p", text, "-m", "96"];
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
    let args = ["generate", "--json", "--raw", "--model", &dir, "-p", "-", "-m", "4", "--ignore-eos"];
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
    let args = ["generate", "--model", &dir, "-p", user, "-m", "8", "--ignore-eos"];
    let json = [&args[..], &["--json", "--chat"]].concat();
    let got = zmlx(&json).ok().json();
    assert_eq!(got["prompt_tokens"], json!(want.prompt_tokens));
    assert_eq!(got["tokens"], json!(want.truth_f32.tokens[..8]));
    // The template is the default for text. With --json the prompt is continued as it is.
    let text = got["text"].as_str().unwrap();
    assert!(zmlx(&args).ok().stdout.contains(text));
    let raw = zmlx(&[&args[..], &["--json"]].concat()).ok().json();
    let same = zmlx(&[&args[..], &["--json", "--raw"]].concat()).ok().json();
    assert_eq!((&raw["prompt_tokens"], &raw["text"]), (&same["prompt_tokens"], &same["text"]));
    assert_ne!(raw["prompt_tokens"], got["prompt_tokens"]);
    let args = json;
    let longer = zmlx(&[&args[..], &["--system-prompt", "Be brief."]].concat()).ok().json();
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
    // Once there is some text, generation is in progress.
    stdout.read_exact(&mut [0; 40]).unwrap();
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(rest.ends_with('\n'), "{rest}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains("\nPrompt: 64 tokens, ") && stderr.contains("Stop reason: interrupted"),
        "{stderr}"
    );
}
