//! Answers that refuse, and answers that are not what they should be.

use crate::hub::Reply;
use crate::*;

const WEIGHTS: &str = "model.safetensors";

#[test]
fn a_refusal_is_told_at_once() {
    for (status, tells) in [(401, "HF_TOKEN"), (403, "terms"), (404, "no such model"), (418, "418")] {
        let trial = Trial::new(LoopbackHub::start(move |_, _| {
            Reply::new(status, "x").with("x-error-message", "the hub's words")
        }));
        trial.refused(&[ID, &status.to_string(), tells]);
        assert_eq!(trial.hub.requests().len(), 1);
        // The same for a file.
        let model = Model::tiny();
        let trial = Trial::new(LoopbackHub::start(move |request, _| {
            if request.is_for(WEIGHTS) { Reply::new(status, "x") } else { model.answer(request) }
        }));
        trial.refused(&[WEIGHTS, &status.to_string()]);
        assert_eq!(trial.hub.requests_for(WEIGHTS).len(), 1);
    }
}

#[test]
fn a_busy_hub_is_asked_again() {
    for status in [429, 500, 503] {
        let model = Model::tiny();
        let answers = model.clone();
        let trial = Trial::new(LoopbackHub::start(move |request, n| {
            let is_busy = n < 2 && (request.is_for(WEIGHTS) || request.path.starts_with("/api"));
            if is_busy { Reply::new(status, "later").with("retry-after", 0) } else { answers.answer(request) }
        }));
        trial.pull().unwrap();
        trial.holds(&model);
    }
}

#[test]
fn a_hub_that_stays_busy_is_left() {
    let trial = Trial::new(LoopbackHub::start(|_, _| Reply::new(503, "later")));
    assert!(matches!(trial.refused(&[ID, "503"]), Error::Status { status: 503, .. }));
    assert_eq!(trial.hub.requests().len(), 5);
    // A hub that asks for a wait of an hour is not waited for.
    let trial = Trial::new(LoopbackHub::start(|_, _| Reply::new(429, "later").with("retry-after", 3600)));
    trial.refused(&["too many requests"]);
    assert_eq!(trial.hub.requests().len(), 1);
}

#[test]
fn a_hub_that_is_not_there_is_told() {
    let trial = Trial::new(LoopbackHub::of(Model::tiny())).with("HF_ENDPOINT", "http://127.0.0.1:1");
    assert!(matches!(trial.refused(&["127.0.0.1:1"]), Error::Unreachable { .. }));
}

#[test]
fn a_list_that_is_none_is_refused() {
    let model = Model::tiny();
    let hostile = |path: &str| {
        let mut listing = model.listing();
        listing["siblings"][0]["rfilename"] = path.into();
        listing.to_string()
    };
    let mut many = model.listing();
    many["siblings"] = (0..20_000).map(|i| serde_json::json!({"rfilename": format!("{i}.json")})).collect();
    for (body, tells) in [
        ("<html>sign in</html>".to_owned(), "a list of files as JSON"),
        ("{}".to_owned(), "a list of files as JSON"),
        ("[".repeat(100_000), "a list of files as JSON"),
        (hostile("../../../x.json"), "not a path within a model"),
        (hostile("/x.json"), "not a path within a model"),
        (hostile(&"x/".repeat(100_000)), ""),
        (hostile(&format!("{}.json", "x".repeat(100_000))), "not a path within a model"),
        (many.to_string(), "20000 files"),
        (serde_json::json!({"sha": "../x", "siblings": []}).to_string(), "commit"),
        (serde_json::json!({"sha": COMMIT, "siblings": []}).to_string(), "config.json"),
        (
            serde_json::json!({"sha": COMMIT, "siblings": [{"rfilename": "config.json"}]}).to_string(),
            "safetensors",
        ),
    ] {
        let trial = Trial::new(LoopbackHub::start(move |_, _| Reply::new(200, body.clone())));
        match trial.pull() {
            Err(error) => {
                assert!(error.to_string().contains(tells) && error.to_string().len() < 1000, "{error}")
            }
            Ok(_) => panic!("{tells}"),
        }
        assert!(!trial.dir.path().join("x.json").exists());
    }
}

#[test]
fn an_encoded_answer_is_refused() {
    let model = Model::tiny();
    let trial = Trial::new(LoopbackHub::start(move |request, _| {
        let reply = model.answer(request);
        if request.is_for(WEIGHTS) { reply.with("content-encoding", "gzip") } else { reply }
    }));
    trial.refused(&["content-encoding gzip"]);
}

#[test]
fn without_hashes_in_the_list_those_of_the_headers_count() {
    let model = Model { tells_hashes: false, ..Model::tiny() };
    let trial = Trial::new(LoopbackHub::of(model.clone()));
    trial.pull().unwrap();
    trial.holds(&model);
    let of_another = "0".repeat(64);
    for (etag, tells) in
        [(of_another.as_str(), of_another.as_str()), ("\"../../x\"", "etag"), ("W/\"abc\"", "etag")]
    {
        let (answers, etag) = (model.clone(), etag.to_owned());
        let trial = Trial::new(LoopbackHub::start(move |request, _| {
            let reply = answers.answer(request);
            if request.is_for(WEIGHTS) { reply.without("etag").with("etag", &etag) } else { reply }
        }));
        trial.refused(&[WEIGHTS, tells]);
    }
}

#[test]
fn an_address_that_is_none_is_refused_before_anything() {
    for address in ["huggingface.co", "ftp://hub.test", "https://me:pass@hub.test", "http://"] {
        let trial = Trial::new(LoopbackHub::of(Model::tiny())).with("HF_ENDPOINT", address);
        let error = trial.pull().unwrap_err().to_string();
        assert!(error.starts_with("HF_ENDPOINT: expected") && !error.contains("pass"), "{error}");
    }
}
