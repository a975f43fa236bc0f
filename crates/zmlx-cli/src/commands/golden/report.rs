//! The results of a check: for people, as JUnit XML, and as annotations for GitHub.

use std::path::Path;

use anyhow::Result;
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use super::check::{PromptResult, Results};
use crate::table::Table;
use zmlx_bench::capsule::validate::Verdict;

/// Where and how the tokens or the probabilities of a prompt differ.
fn difference(p: &PromptResult) -> Option<String> {
    let token = |t: Option<u32>| t.map_or_else(|| "the end".to_owned(), |t| t.to_string());
    let number = |x: Option<f64>| x.map_or_else(|| "unknown".to_owned(), |x| format!("{x:.2e}"));
    let tokens = p.first_divergence.map(|step| {
        format!(
            "token {step}: got {}, want {}; the margin there is {}, a flip is explained below {}",
            token(p.got),
            token(p.want),
            number(p.margin),
            number(p.bound)
        )
    });
    let is_sound = p.logprob_rel_rms.zip(p.logprob_bound).is_none_or(|(got, bound)| got <= bound);
    let probabilities = (!is_sound).then(|| {
        format!(
            "log-probabilities differ by {} of the logits' spread (root mean square), allowed is {}",
            number(p.logprob_rel_rms),
            number(p.logprob_bound)
        )
    });
    let both: Vec<String> = tokens.into_iter().chain(probabilities).collect();
    (!both.is_empty()).then(|| both.join("; "))
}

/// A table for each backend.
pub(super) fn text(model: &str, all: &[Results], worst: Verdict) -> String {
    let number = |x: Option<f64>| x.map_or_else(|| "-".to_owned(), |x| format!("{x:.1e}"));
    let mut text = String::new();
    for results in all {
        text += &format!("{model} on {}\n\n", results.backend);
        let mut table = Table::new(&[
            "prompt",
            "tokens",
            "first flip",
            "want",
            "got",
            "margin",
            "bound",
            "log-prob",
            "verdict",
        ]);
        for p in &results.prompts {
            let or_dash = |x: Option<String>| x.unwrap_or_else(|| "-".to_owned());
            table.row(vec![
                p.prompt.clone(),
                p.n_tokens.to_string(),
                or_dash(p.first_divergence.map(|i| i.to_string())),
                or_dash(p.want.map(|t| t.to_string())),
                or_dash(p.got.map(|t| t.to_string())),
                number(p.margin),
                number(p.bound),
                number(p.logprob_rel_rms),
                p.verdict.name().to_owned(),
            ]);
        }
        text += &table.render();
        text.push('\n');
    }
    text + worst.name() + "\n"
}

/// One annotation for each prompt that differs, and a summary. If the check could not run, the error instead.
pub(super) fn github(file: &Path, all: &[Results], error: Option<&str>) -> String {
    let mut text = String::new();
    let (mut n_prompts, mut n_equal) = (0, 0);
    for (results, p) in all.iter().flat_map(|r| r.prompts.iter().map(move |p| (r, p))) {
        n_prompts += 1;
        let level = match p.verdict {
            Verdict::Pass => {
                n_equal += 1;
                continue;
            }
            Verdict::Explained => "notice",
            Verdict::Fail => "error",
        };
        let title = format!("{} on {}: {}", p.prompt, results.backend, p.verdict.name());
        let what = difference(p).unwrap_or_default();
        text += &annotation(level, file, &title, &what);
    }
    if let Some(error) = error {
        text += &annotation("error", file, "golden tokens: FAIL, the check could not run", error);
    }
    let summary = format!("{n_equal} of {n_prompts} continuations are the recorded ones");
    text + &annotation("notice", file, "golden tokens", &summary)
}

fn annotation(level: &str, file: &Path, title: &str, message: &str) -> String {
    let escaped = |text: &str| text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    let property = |text: &str| escaped(text).replace(':', "%3A").replace(',', "%2C");
    let file = property(&file.display().to_string());
    format!("::{level} file={file},title={}::{}\n", property(title), escaped(message))
}

/// A test suite for each backend with a test case for each prompt. If the check could not run, one case contains the
/// error.
pub(super) fn junit(file: &Path, all: &[Results], error: Option<&str>) -> Result<String> {
    let mut report = Report::new(file.display().to_string());
    for results in all {
        let mut suite = TestSuite::new(results.backend.clone());
        for p in &results.prompts {
            let status = if p.verdict == Verdict::Fail {
                let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
                status.set_message(difference(p).unwrap_or_default());
                status
            } else {
                TestCaseStatus::success()
            };
            let mut case = TestCase::new(p.prompt.clone(), status);
            if p.verdict == Verdict::Explained {
                case.set_system_out(format!("EXPLAINED: {}", difference(p).unwrap_or_default()));
            }
            suite.add_test_case(case);
        }
        report.add_test_suite(suite);
    }
    if let Some(error) = error {
        let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
        status.set_message(format!("FAIL: {error}"));
        let mut suite = TestSuite::new("zmlx golden check");
        suite.add_test_case(TestCase::new("the check runs", status));
        report.add_test_suite(suite);
    }
    Ok(report.to_string()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results() -> Vec<Results> {
        let prompt = |name: &str, verdict, first_divergence| PromptResult {
            prompt: name.to_owned(),
            n_tokens: 8,
            verdict,
            first_divergence,
            want: first_divergence.map(|_| 5),
            got: first_divergence.map(|_| 6),
            margin: first_divergence.map(|_| 0.25),
            bound: first_divergence.map(|_| 0.001),
            logprob_rel_rms: Some(if name == "one" { 1e-4 } else { 0.5 }),
            logprob_bound: Some(0.02),
        };
        vec![Results {
            backend: "cpu (avx2, 2 threads)".to_owned(),
            prompts: vec![
                prompt("one", Verdict::Pass, None),
                prompt("<two>\n100 %", Verdict::Fail, Some(3)),
                prompt("three", Verdict::Explained, Some(4)),
            ],
        }]
    }

    #[test]
    fn annotations_are_escaped() {
        let text = github(Path::new("a,b/golden.json"), &results(), None);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            "::error file=a%2Cb/golden.json,title=<two>%0A100 %25 on cpu (avx2%2C 2 threads)%3A FAIL::token 3: got 6, want 5; \
             the margin there is 2.50e-1, a flip is explained below 1.00e-3; log-probabilities differ by 5.00e-1 of the logits' \
             spread (root mean square), allowed is 2.00e-2"
        );
        assert!(lines[1].starts_with("::notice file=a%2Cb/golden.json,title=three on"));
        assert_eq!(
            lines[2],
            "::notice file=a%2Cb/golden.json,title=golden tokens::1 of 3 continuations are the recorded ones"
        );
    }

    #[test]
    fn junit_tells_what_failed() {
        let xml = junit(Path::new("golden.json"), &results(), None).unwrap();
        assert!(xml.contains(r#"tests="3" skipped="0" errors="0" failures="1""#), "{xml}");
        assert!(xml.contains("&lt;two&gt;") && xml.contains("got 6, want 5"), "{xml}");
        assert!(xml.contains("EXPLAINED: token 4"), "{xml}");
    }

    #[test]
    fn a_check_that_cannot_run_fails_in_every_report() {
        let xml = junit(Path::new("golden.json"), &[], Some("no such model")).unwrap();
        assert!(xml.contains(r#"tests="1" skipped="0" errors="1" failures="0""#), "{xml}");
        assert!(xml.contains("FAIL: no such model"), "{xml}");
        let text = github(Path::new("golden.json"), &[], Some("no such model"));
        assert!(
            text.contains("::error file=golden.json,title=golden tokens%3A FAIL")
                && text.contains("no such model")
        );
    }
}
