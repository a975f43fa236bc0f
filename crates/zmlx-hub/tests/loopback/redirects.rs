//! Redirects: to stores, which must not get the token, and to addresses that must not be followed.

use crate::hub::Reply;
use crate::*;

const WEIGHTS: &str = "model.safetensors";
const TOKEN: &str = "hf_aVerySecretToken";

#[test]
fn a_store_never_sees_the_token() {
    let model = Model::tiny();
    let store = LoopbackHub::of(model.clone());
    let stored = model.clone().stored_at(WEIGHTS, &store.url);
    for tells_hashes in [true, false] {
        let hub = LoopbackHub::of(Model { tells_hashes, ..stored.clone() });
        let trial = Trial::new(hub).with("HF_TOKEN", TOKEN);
        trial.pull().unwrap();
        trial.holds(&model);
        for request in trial.hub.requests() {
            assert_eq!(
                request.header("authorization"),
                Some(format!("Bearer {TOKEN}").as_str()),
                "{request:?}"
            );
        }
    }
    assert!(!store.requests().is_empty());
    for request in store.requests() {
        assert!(!format!("{request:?}").contains(TOKEN), "{request:?}");
    }
}

#[test]
fn within_the_hub_the_token_goes_along() {
    // A model that was renamed: relative redirects, also of the list.
    let model = Model::tiny();
    let answers = model.clone();
    let trial = Trial::new(LoopbackHub::start(move |request, _| match request.path.strip_prefix("/moved") {
        None => Reply::new(307, "").with("location", format!("/moved{}", request.path)),
        Some(path) => {
            assert!(request.header("authorization").is_some());
            answers.answer(&request.at(path))
        }
    }))
    .with("HF_TOKEN", TOKEN);
    trial.pull().unwrap();
    trial.holds(&model);
}

#[test]
fn a_redirect_that_leads_nowhere_is_told() {
    for (location, tells) in [
        ("file:///etc/passwd", "redirect"),
        ("ftp://127.0.0.1/x", "redirect"),
        ("http://me:pass@127.0.0.1/x", "redirect"),
        ("", "redirect"),
        ("http://[", "redirect"),
        ("/round", "redirects without an end"),
    ] {
        let trial =
            Trial::new(LoopbackHub::start(move |_, _| Reply::new(302, "").with("location", location)));
        trial.refused(&[ID, tells]);
        assert!(trial.hub.requests().len() <= 11, "{location}");
    }
    let trial = Trial::new(LoopbackHub::start(move |_, _| Reply::new(302, "")));
    trial.refused(&["redirect"]);
}

#[test]
fn a_refused_token_is_not_told() {
    for status in [401, 403] {
        let trial =
            Trial::new(LoopbackHub::start(move |_, _| Reply::new(status, "no"))).with("HF_TOKEN", TOKEN);
        let error = trial.refused(&[ID, &status.to_string()]);
        assert!(!format!("{error} {error:?}").contains(TOKEN));
    }
}
