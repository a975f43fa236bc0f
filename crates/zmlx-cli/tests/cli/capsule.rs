//! `zmlx capsule`: showing, comparing and reporting, and what the command refuses.

mod browser;
mod record;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::*;
use record::{bench, validation};

/// Writes a capsule to a folder.
fn write(dir: &Path, name: &str, capsule: &Value) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, serde_json::to_vec_pretty(capsule).unwrap()).unwrap();
    path
}

/// Runs `zmlx capsule` with these arguments. It does not take `--threads`.
fn capsule<A: AsRef<std::ffi::OsStr>>(args: &[A]) -> Run {
    finish(Command::new(env!("CARGO_BIN_EXE_zmlx")).arg("capsule").args(args))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn the_published_schema_is_the_programs_own() {
    let published = std::fs::read_to_string(root().join("docs/capsule.schema.json")).unwrap();
    let run = capsule(&["schema"]).ok();
    assert!(run.stdout == published, "stale: cargo run -- capsule schema > docs/capsule.schema.json");
}

#[test]
fn the_schema_takes_capsules_and_nothing_else() {
    let schema = serde_json::from_str(&capsule(&["schema"]).ok().stdout).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    for capsule in [bench(), validation()] {
        let problems: Vec<_> = validator.iter_errors(&capsule).map(|e| e.to_string()).collect();
        assert!(problems.is_empty(), "{problems:?}");
    }
    for (pointer, wrong) in [
        ("/format", json!(2)),
        ("/kind", json!("lunch")),
        ("/machine/logical_cores", json!("two")),
        ("/bench/tests/0/samples_s", json!([null])),
    ] {
        let mut capsule = bench();
        *capsule.pointer_mut(pointer).unwrap() = wrong;
        assert!(!validator.is_valid(&capsule), "{pointer}");
    }
}

#[test]
fn show_tells_what_was_measured() {
    let dir = tempfile::tempdir().unwrap();
    let text =
        capsule(&[write(dir.path(), "a.json", &bench())].map(|f| ["show".into(), f]).concat()).ok().stdout;
    for tells in ["0123456789", "tiny", "tg128", "fused", "2.000×", "1.900–2.200", "50 %", "gate_up"] {
        assert!(text.contains(tells), "{tells:?} is not in {text}");
    }
    let file = write(dir.path(), "b.json", &validation());
    let text = capsule(&["show".as_ref(), file.as_os_str()]).ok().stdout;
    assert!(text.ends_with("\nEXPLAINED\n") && text.contains("fused vs stock"), "{text}");
}

#[test]
fn diff_names_what_differs() {
    let dir = tempfile::tempdir().unwrap();
    let mut other = bench();
    other["machine"]["cpu"] = json!("Other CPU");
    other["environment"]["ZMLX_CPU_LEVEL"] = json!("scalar");
    other["bench"]["tests"][0]["samples_s"] = json!([4.0, 4.0, 4.0]);
    other["bench"]["tests"][1]["name"] = json!("tg64");
    let (a, b) = (write(dir.path(), "a.json", &bench()), write(dir.path(), "b.json", &other));
    let text = capsule(&["diff".as_ref(), a.as_os_str(), b.as_os_str()]).ok().stdout;
    for tells in [
        "machine.cpu",
        "Other CPU",
        "environment.ZMLX_CPU_LEVEL",
        "0.500",
        "only in A: tg128 cpu fused",
        "only in B: tg64",
    ] {
        assert!(text.contains(tells), "{tells:?} is not in {text}");
    }
    assert!(!text.contains("model."), "{text}");
    let text = capsule(&["diff".as_ref(), a.as_os_str(), a.as_os_str()]).ok().stdout;
    assert!(text.contains("All facts are equal") && text.contains("1.000"), "{text}");
}

#[test]
fn check_ends_with_1_where_something_is_worse() {
    let dir = tempfile::tempdir().unwrap();
    let a = write(dir.path(), "a.json", &bench());
    let mut slower = bench();
    slower["bench"]["tests"][1]["samples_s"] = json!([1.5, 1.51, 1.52]); // About 1.5 times as long as 1.0
    let b = write(dir.path(), "b.json", &slower);
    let check = |args: &[&str]| {
        let files = [a.to_str().unwrap(), b.to_str().unwrap()];
        capsule(&[&["check"][..], &files, args].concat())
    };
    let run = check(&[]);
    assert_eq!(run.code, Some(1), "{run:#?}");
    assert!(
        run.stdout.contains("worse: tg128 cpu fused: takes 51.5 % longer (95 % interval: "),
        "{}",
        run.stdout
    );
    check(&["--threshold", "60"]).ok();
    // A difference that is within the spread of the repetitions does not fail.
    slower["bench"]["tests"][1]["samples_s"] = json!([1.1, 1.2, 1.0]);
    write(dir.path(), "b.json", &slower);
    let run = check(&[]).ok();
    assert!(
        run.stdout.contains("not clear: tg128 cpu fused: takes 10.") && run.stdout.contains("No regression"),
        "{}",
        run.stdout
    );
    check(&["--threshold", "-1"]).refused(&["threshold"]);
    // A faster test is not a regression.
    capsule(&["check".as_ref(), b.as_os_str(), a.as_os_str()]).ok();
    // A single repetition has no spread, so the estimate alone decides.
    slower["bench"]["tests"][1]["samples_s"] = json!([1.2]);
    write(dir.path(), "b.json", &slower);
    assert_eq!(check(&[]).code, Some(1));
    // Samples without any time must not pass.
    slower["bench"]["tests"][1]["samples_s"] = json!([]);
    write(dir.path(), "b.json", &slower);
    assert_eq!(check(&[]).code, Some(1));

    let a = write(dir.path(), "a.json", &validation());
    let mut worse = validation();
    worse["validate"]["checks"][0]["verdict"] = json!("fail");
    let b = write(dir.path(), "b.json", &worse);
    let run = capsule(&["check".as_ref(), a.as_os_str(), b.as_os_str()]);
    assert_eq!(run.code, Some(1), "{run:#?}");
    assert!(run.stdout.contains("worse: novel: fused vs stock: PASS → FAIL"), "{}", run.stdout);
    capsule(&["check".as_ref(), b.as_os_str(), a.as_os_str()]).ok();
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let a = write(dir.path(), "a.json", &bench());
    let check = |edit: &dyn Fn(&mut Value), extra: &[&str]| {
        let mut other = bench();
        edit(&mut other);
        let b = write(dir.path(), "b.json", &other);
        capsule(&[&["check", a.to_str().unwrap(), b.to_str().unwrap()], extra].concat())
    };
    check(&|c| c["model"]["weights_sha256"] = json!("ff"), &[]).refused(&[
        "cannot be compared",
        "weights_sha256",
        "ff",
    ]);
    check(&|c| c["model"]["config_sha256"] = json!("ff"), &["--any-machine"]).refused(&["config_sha256"]);
    check(&|c| c["machine"]["cpu"] = json!("Z80"), &[]).refused(&["machine.cpu", "Z80", "--any-machine"]);
    check(&|c| c["machine"]["cpu"] = json!("Z80"), &["--any-machine"]).ok();
    check(&|c| c["format"] = json!(2), &[]).refused(&["b.json", "format", "version 2"]);
    let golden = fixtures().join("golden/austen-qwen3-moe-4bit.json");
    let golden = golden.to_str().unwrap();
    capsule(&["show", golden]).refused(&["golden file", "zmlx golden check"]);
    check(&|c| *c = validation(), &[]).refused(&["kind"]);
    check(&|c| c["bench"]["tests"] = json!([]), &[]).refused(&["no test in common"]);
}

#[test]
fn a_share_is_that_of_the_probe_before_its_repetition() {
    let dir = tempfile::tempdir().unwrap();
    let mut probed = bench();
    // Repetitions at 128, 116 and 142 MB/s: the whole bandwidth, nine times the bandwidth and a ninth of the bandwidth
    // that was measured just before each.
    probed["bench"]["tests"][1]["probes_bytes_per_second"] = json!([128e6, 12.8e6, 1.28e9]);
    write(dir.path(), "a.json", &probed);
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    capsule(&["report", &at("a.json"), "-o", &at("report.md")]).ok();
    let text = std::fs::read_to_string(at("report.md")).unwrap();
    assert!(text.contains("| fused | 128.0 | 2.000× | 1.900–2.200 | 100 % | 0.1 |"), "{text}");
}

#[test]
fn a_report_has_every_capsule_and_overwrites_nothing() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a.json", &bench());
    write(dir.path(), "b.json", &validation());
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (from, md, html) = (at(""), at("report.md"), at("report.html"));
    capsule(&["report", &from, "-o", &md]).ok();
    let text = std::fs::read_to_string(&md).unwrap();
    assert!(text.contains("| fused | 128.0 | 2.000× | 1.900–2.200 | 50 % |"), "{text}");
    assert!(text.contains("EXPLAINED"), "{text}");
    capsule(&["report", &from, "-o", &html]).ok();
    let page = std::fs::read_to_string(&html).unwrap();
    assert_eq!(page.matches("<details>").count(), 2);

    capsule(&["report", &from, "-o", &html]).refused(&["report.html", "--force"]);
    capsule(&["report", &from, "-o", &html, "--force"]).ok();
    capsule(&["report", &from, "-o", &at("report.txt")]).refused(&[".html or .md"]);
    capsule(&["report", &at("nothing"), "-o", &md, "--force"]).refused(&["nothing"]);
    let empty = tempfile::tempdir().unwrap();
    capsule(&["report", empty.path().to_str().unwrap(), "-o", &md, "--force"]).refused(&["no .json file"]);
    // If one of several capsules is damaged, the message names it, and the old report stays.
    std::fs::write(at("c.json"), &serde_json::to_string(&bench()).unwrap()[..400]).unwrap();
    capsule(&["report", &from, "-o", &html, "--force"]).refused(&["c.json", "EOF"]);
    assert_eq!(std::fs::read_to_string(&html).unwrap(), page);
    let mut lacking = bench();
    lacking["bench"]["tests"][1].as_object_mut().unwrap().remove("fusion");
    write(dir.path(), "c.json", &lacking);
    capsule(&["report", &from, "-o", &html, "--force"]).refused(&["c.json", "bench.tests[1]", "fusion"]);
}

#[test]
fn a_report_has_a_table_for_each_machine() {
    let dir = tempfile::tempdir().unwrap();
    let mut other = bench();
    other["machine"]["cpu"] = json!("Other CPU");
    other["zmlx"]["commit"] = json!("fedcba9876543210fedcba9876543210fedcba98");
    let mut later = bench();
    later["date"] = json!("2026-11-24T08:00:00Z");
    for (name, capsule) in [("a.json", bench()), ("b.json", other), ("c.json", later)] {
        write(dir.path(), name, &capsule);
    }
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    capsule(&["report", &at(""), "-o", &at("r.md")]).ok();
    let text = std::fs::read_to_string(at("r.md")).unwrap();
    let (first, second) =
        text.split_once("**Other CPU, 4 cores, avx2** (2026-11-23, commit fedcba9876, release)").unwrap();
    let title = "**Test CPU, 4 cores, avx2** (2026-11-23, commit 0123456789, release; 2026-11-24, commit 0123456789, release)";
    assert!(first.trim_start().starts_with(title), "{text}");
    let n_rows = |table: &str| table.matches("| fused | 128.0 | 2.000× |").count();
    assert_eq!((n_rows(first), n_rows(second)), (2, 1), "{text}");
    capsule(&["report", &at(""), "-o", &at("r.html")]).ok();
    let page = std::fs::read_to_string(at("r.html")).unwrap();
    assert_eq!(page.matches("<h3>Test CPU, 4 cores, avx2</h3>").count(), 1);
    assert_eq!(page.matches("<h3>Other CPU, 4 cores, avx2</h3>").count(), 1);
}

#[test]
fn nothing_from_a_file_becomes_markup() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(dir.path(), "a.json", &record::hostile());
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    capsule(&["report", file.to_str().unwrap(), "-o", &at("r.html")]).ok();
    let page = std::fs::read_to_string(at("r.html")).unwrap();
    assert!(
        page.contains("&lt;script&gt;") && !page.to_lowercase().contains("<script") && !page.contains("<img"),
        "{page}"
    );
    capsule(&["report", file.to_str().unwrap(), "-o", &at("r.md")]).ok();
    assert!(!std::fs::read_to_string(at("r.md")).unwrap().contains("<script"));
    assert!(!capsule(&["show".as_ref(), file.as_os_str()]).ok().stdout.contains('\u{1b}'));
}

#[test]
fn the_results_in_the_book_are_those_of_the_record() {
    let record = root().join("benches/record");
    let page = std::fs::read_to_string(root().join("docs/results.md")).unwrap();
    let (_, rest) = page.split_once("<!-- results: cargo xtask results -->\n").unwrap();
    let (shown, _) = rest.split_once("<!-- end of results -->").unwrap();
    let is_capsule = |path: &PathBuf| path.extension().is_some_and(|e| e == "json");
    if !record.read_dir().unwrap().any(|entry| is_capsule(&entry.unwrap().path())) {
        assert_eq!(shown, "", "results without a record");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("results.md");
    capsule(&["report".as_ref(), record.as_os_str(), "-o".as_ref(), file.as_os_str()]).ok();
    let results = std::fs::read_to_string(file).unwrap();
    assert_eq!(shown.trim(), results.trim(), "stale: cargo xtask results");
}
