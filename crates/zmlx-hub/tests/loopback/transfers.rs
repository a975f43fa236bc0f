//! Transfers that break, stall, or bring something else.

use crate::hub::Reply;
use crate::*;

const WEIGHTS: &str = "model.safetensors";

/// A hub whose answers for the weights are changed. `change` gets the number of earlier answers.
fn with_weights(change: impl Fn(Reply, usize) -> Reply + Send + Sync + 'static) -> (Model, Trial) {
    let model = Model::tiny();
    let answers = model.clone();
    let hub = LoopbackHub::start(move |request, n| {
        let reply = answers.answer(request);
        if request.is_for(WEIGHTS) { change(reply, n) } else { reply }
    });
    (model, Trial::new(hub))
}

#[test]
fn broken_connections_are_resumed_where_they_broke() {
    let (model, trial) = with_weights(|reply, _| Reply { breaks_after: Some(20_000), ..reply });
    trial.pull().unwrap();
    trial.holds(&model);
    let starts: Vec<_> = trial.hub.requests_for(WEIGHTS).iter().map(|r| r.start().unwrap_or(0)).collect();
    assert_eq!(starts, (0..=15).map(|i| i * 20_000).collect::<Vec<_>>());
}

#[test]
fn what_an_earlier_process_left_is_used() {
    let (model, trial) = with_weights(|reply, _| reply);
    write(&trial.partial(&model, WEIGHTS), &model.files[WEIGHTS][..123_456]);
    let begun = Mutex::new(0);
    Hub::of(&trial.environment())
        .unwrap()
        .pull(&name(), &|notice| {
            if let Notice::Begin { present_bytes, .. } = notice {
                *begun.lock().unwrap() = present_bytes;
            }
        })
        .unwrap();
    trial.holds(&model);
    assert_eq!(*begun.lock().unwrap(), 123_456);
    assert_eq!(trial.hub.requests_for(WEIGHTS)[0].start(), Some(123_456));
}

#[test]
fn all_of_it_may_be_there_already() {
    let (model, trial) = with_weights(|reply, _| reply);
    write(&trial.partial(&model, WEIGHTS), &model.files[WEIGHTS]);
    trial.pull().unwrap();
    trial.holds(&model);
    assert!(trial.hub.requests_for(WEIGHTS).is_empty());
}

#[test]
fn what_an_earlier_process_left_may_be_something_else() {
    let size = Model::tiny().files[WEIGHTS].len();
    for n in [1000, size, size + 1] {
        let (model, trial) = with_weights(|reply, _| reply);
        write(&trial.partial(&model, WEIGHTS), &vec![9; n]);
        trial.pull().unwrap();
        trial.holds(&model);
    }
}

#[test]
fn a_hub_without_ranges_begins_anew() {
    let model = Model::tiny();
    let answers = model.clone();
    let trial = Trial::new(LoopbackHub::start(move |request, n| {
        let reply = answers.answer(request);
        if !request.is_for(WEIGHTS) {
            return reply;
        }
        let whole = Reply::new(200, answers.files[WEIGHTS].clone());
        if n == 0 { Reply { breaks_after: Some(50_000), ..whole } } else { whole }
    }));
    trial.pull().unwrap();
    trial.holds(&model);
}

#[test]
fn a_hub_that_never_gets_on_is_left() {
    let (model, trial) = with_weights(|reply, _| Reply { breaks_after: Some(0), ..reply });
    trial.refused(&[]);
    assert_eq!(trial.hub.requests_for(WEIGHTS).len(), 5);
    assert_eq!(trial.partial(&model, WEIGHTS).metadata().unwrap().len(), 0);
}

#[test]
fn a_truncated_blob_is_no_blob() {
    // Consistently: the length and the range also give the smaller size.
    let model = Model::tiny();
    let mut short = model.clone();
    short.files.get_mut(WEIGHTS).unwrap().truncate(200_000);
    let listing = model.listing().to_string();
    let trial = Trial::new(LoopbackHub::start(move |request, _| {
        if request.path.starts_with("/api") {
            Reply::new(200, listing.clone())
        } else {
            short.answer(request)
        }
    }));
    assert!(matches!(trial.refused(&[WEIGHTS, "200000 bytes"]), Error::Differs { .. }));
    assert!(!trial.partial(&model, WEIGHTS).exists());
    // Without a length, so that only the end of the connection shows it.
    let (_, trial) = with_weights(|reply, _| {
        let body = reply.body[..reply.body.len() / 2].to_vec();
        Reply { body, ..Reply::new(200, "").with("content-length", "untold") }
    });
    trial.refused(&[WEIGHTS]);
}

#[test]
fn an_altered_blob_is_fetched_once_more() {
    let alter = |mut reply: Reply| {
        reply.body[77] ^= 1;
        reply
    };
    let (model, trial) = with_weights(move |reply, n| if n == 0 { alter(reply) } else { reply });
    trial.pull().unwrap();
    trial.holds(&model);
    assert_eq!(trial.hub.requests_for(WEIGHTS).len(), 2);

    let (model, trial) = with_weights(move |reply, _| alter(reply));
    let error = trial.refused(&[WEIGHTS, &model.hash(WEIGHTS)]);
    assert!(matches!(error, Error::Differs { .. }), "{error}");
    assert_eq!(trial.hub.requests_for(WEIGHTS).len(), 2);
    assert!(!trial.partial(&model, WEIGHTS).exists());
    // A small file is compared with git's hash.
    let altered = model.clone();
    let trial = Trial::new(LoopbackHub::start(move |request, _| {
        let reply = altered.answer(request);
        if request.is_for("tokenizer.json") { Reply { body: b"[]".to_vec(), ..reply } } else { reply }
    }));
    trial.refused(&["tokenizer.json", &model.hash("tokenizer.json")]);
}

#[test]
fn more_than_the_file_has_is_refused() {
    let (_, trial) = with_weights(|mut reply, _| {
        reply.body.extend([0; 5000]);
        reply
    });
    assert!(matches!(trial.refused(&[WEIGHTS]), Error::Differs { .. }));
}

#[test]
fn another_range_than_was_asked_for_is_not_appended() {
    let (model, trial) = with_weights(|reply, n| match n {
        0 => Reply { breaks_after: Some(30_000), ..reply },
        1 => reply.without("content-range").with("content-range", "bytes 5-300077/300078"),
        _ => reply,
    });
    trial.pull().unwrap();
    trial.holds(&model);
}

#[test]
fn a_hub_that_falls_silent_is_asked_again() {
    let (model, trial) = with_weights(|reply, n| match n {
        0 => Reply { stalls_after: Some(10_000), ..reply },
        _ => reply,
    });
    let trial = trial.with("HF_HUB_DOWNLOAD_TIMEOUT", "1");
    trial.pull().unwrap();
    trial.holds(&model);
    assert_eq!(trial.hub.requests_for(WEIGHTS)[1].start(), Some(10_000));
}

#[test]
fn a_blob_of_the_wrong_size_is_fetched_anew() {
    let (model, trial) = with_weights(|reply, _| reply);
    let blob = trial.model_dir().join("blobs").join(model.hash(WEIGHTS));
    write(&blob, &model.files[WEIGHTS][..1000]);
    trial.pull().unwrap();
    trial.holds(&model);
}

#[test]
fn what_other_tools_left_half_done_is_completed() {
    let (model, trial) = with_weights(|reply, _| reply);
    let snapshot = trial.model_dir().join("snapshots").join(COMMIT);
    write(&snapshot.join("config.json"), b"old");
    write(&trial.model_dir().join("refs/main"), COMMIT.as_bytes());
    assert!(matches!(trial.found(), Err(Error::Incomplete { .. })));
    trial.pull().unwrap();
    trial.holds(&model);
}

#[test]
fn what_does_not_fit_on_the_disk_is_not_begun() {
    let model = Model::tiny();
    let mut listing = model.listing();
    for file in listing["siblings"].as_array_mut().unwrap() {
        file["size"] = (u64::MAX / 2).into();
        if file.get("lfs").is_some() {
            file["lfs"]["size"] = u64::MAX.into();
        }
    }
    let trial = Trial::new(LoopbackHub::start(move |_, _| Reply::new(200, listing.to_string())));
    assert!(matches!(trial.refused(&["are free"]), Error::NoSpace { .. }));
    assert_eq!(trial.hub.requests().len(), 1);
}
