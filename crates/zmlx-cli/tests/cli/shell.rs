//! `zmlx completions` and `zmlx man`.

use crate::*;

const COMMANDS: [&str; 6] = ["generate", "chat", "pull", "models", "completions", "man"];

#[test]
fn every_shell_gets_a_script_with_all_commands() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = zmlx(&["completions", shell]).ok().stdout;
        for word in COMMANDS.iter().chain(&["temp", "hide-thinking"]) {
            assert!(script.contains(word), "{word} is not in the script for {shell}");
        }
    }
    zmlx(&["completions", "csh"]).refused(&["csh", "bash"]);
}

#[test]
fn the_script_is_one_that_bash_takes() {
    let script = zmlx(&["completions", "bash"]).ok().stdout;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("zmlx.bash");
    std::fs::write(&file, script).unwrap();
    let words =
        r#"source "$1"; COMP_WORDS=(zmlx ch); COMP_CWORD=1; _zmlx zmlx ch zmlx; echo "${COMPREPLY[@]}""#;
    // Some machines have no bash.
    let Ok(output) = Command::new("bash").args(["-c", words, "bash"]).arg(&file).output() else { return };
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "chat\n", "{:?}", String::from_utf8(output.stderr));
}

#[test]
fn there_is_a_page_for_every_command() {
    let page = zmlx(&["man"]).ok().stdout;
    assert!(page.contains(".TH zmlx 1") && page.contains("zmlx\\-chat"), "{page}");
    let chat = zmlx(&["man", "chat"]).ok().stdout;
    assert!(chat.contains(".TH zmlx-chat 1") && chat.contains("hide\\-thinking"), "{chat}");
    zmlx(&["man", "nothing"]).refused(&["nothing"]);

    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("man");
    zmlx(&["man", "--out", out.to_str().unwrap()]).ok();
    for command in COMMANDS {
        assert!(out.join(format!("zmlx-{command}.1")).is_file(), "{command}");
    }
    assert!(out.join("zmlx.1").is_file() && out.join("zmlx-models-rm.1").is_file());
}
