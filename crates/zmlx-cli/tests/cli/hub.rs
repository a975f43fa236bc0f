//! Models by name: `zmlx pull`, `zmlx models`, and `--model org/name`, with a hub on the loopback interface.

#[path = "../../../zmlx-hub/tests/loopback/hub.rs"]
mod loopback;

use std::time::Duration;

use crate::*;
use loopback::{COMMIT, ID, LoopbackHub, Model, Reply};

/// A folder with a cache of its own for the commands, and the hub.
struct Place {
    home: tempfile::TempDir,
    hub: LoopbackHub,
}

impl Place {
    fn new(hub: LoopbackHub) -> Self {
        Self { home: tempfile::tempdir().unwrap(), hub }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = command(args);
        command
            .env("HF_HOME", self.home.path())
            .env("HF_ENDPOINT", &self.hub.url)
            .env_remove("HF_HUB_OFFLINE");
        // A proxy could not reach this machine's loopback addresses.
        for name in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
            command.env_remove(name);
        }
        command
    }

    fn run(&self, args: &[&str]) -> Run {
        finish(&mut self.command(args))
    }

    fn snapshot(&self) -> PathBuf {
        self.home.path().join("hub/models--org--tiny/snapshots").join(COMMIT)
    }
}

fn glm() -> Model {
    Model::of_dir(Path::new(&model(GLM)))
}

const GENERATE: [&str; 7] = ["generate", "--json", "-p", "It is", "-m", "4", "--model"];

#[test]
fn a_model_is_downloaded_once_and_then_found() {
    let place = Place::new(LoopbackHub::of(glm()));
    let want = zmlx(&[&GENERATE[..], &[&model(GLM)]].concat()).ok().json();
    let first = place.run(&[&GENERATE[..], &[ID]].concat()).ok();
    assert_eq!(first.json()["tokens"], want["tokens"]);
    assert!(first.stderr.starts_with(&format!("Downloading {ID}: ")), "{}", first.stderr);
    let n = place.hub.requests().len();
    for args in [
        &[ID][..],
        &[&format!("{ID}@main")],
        &[&format!("{ID}@{COMMIT}")],
        &[ID, "--revision", "main", "--offline"],
    ] {
        let again = place.run(&[&GENERATE[..], args].concat()).ok();
        assert_eq!(
            (again.json()["tokens"].clone(), again.stderr.as_str()),
            (want["tokens"].clone(), ""),
            "{args:?}"
        );
    }
    assert_eq!(place.hub.requests().len(), n);
}

#[test]
fn pull_prints_the_folder() {
    let place = Place::new(LoopbackHub::of(glm()));
    let run = place.run(&["pull", "-q", ID]).ok();
    assert_eq!((run.stdout.trim_end(), run.stderr.as_str()), (place.snapshot().to_str().unwrap(), ""));
    let again = place.run(&["pull", ID, "--revision", "v1"]).ok();
    assert_eq!((again.stdout.trim_end(), again.stderr.as_str()), (place.snapshot().to_str().unwrap(), ""));
    place.run(&["pull", &format!("{ID}@v1"), "--revision", "v1"]).refused(&["twice"]);
    place.run(&["pull", "no name"]).refused(&["org/name"]);
    place.run(&["generate", "--model", &model(GLM), "--revision", "v1"]).refused(&["--revision"]);
}

#[test]
fn what_cannot_be_loaded_is_pulled_with_a_warning() {
    let place = Place::new(LoopbackHub::of(Model::tiny()));
    let run = place.run(&["pull", ID]).ok();
    assert!(run.stderr.contains("warning: this model cannot be loaded: "), "{}", run.stderr);
}

#[test]
fn without_the_network_nothing_is_downloaded() {
    let place = Place::new(LoopbackHub::of(glm()));
    let generate = [&GENERATE[..], &[ID]].concat();
    finish(place.command(&generate).env("HF_HUB_OFFLINE", "1")).refused(&[ID, "HF_HUB_OFFLINE", "no folder"]);
    place.run(&[&generate[..], &["--offline"]].concat()).refused(&[ID, "--offline"]);
    finish(place.command(&["pull", ID]).env("HF_HUB_OFFLINE", "1")).refused(&["HF_HUB_OFFLINE"]);
    assert!(place.hub.requests().is_empty());
}

#[test]
fn a_refusal_is_told_and_the_token_is_not() {
    for (status, tells) in [(401, "HF_TOKEN"), (404, "no such model")] {
        let place = Place::new(LoopbackHub::start(move |_, _| Reply::new(status, "no")));
        let run = finish(place.command(&[&GENERATE[..], &[ID]].concat()).env("HF_TOKEN", "hf_secret"));
        assert!(!run.stderr.contains("hf_secret"));
        run.refused(&[ID, tells, &status.to_string()]);
        assert_eq!(place.hub.requests()[0].header("authorization"), Some("Bearer hf_secret"));
    }
}

/// A hub that sends the weights slowly, in two halves.
fn slow(model: &Model) -> LoopbackHub {
    let answers = model.clone();
    LoopbackHub::start(move |request, _| {
        let reply = answers.answer(request);
        if request.is_for("model.safetensors") && request.start().is_none() {
            let half = reply.body.len() / 2;
            return Reply { stalls_after: Some(half), ..reply };
        }
        reply
    })
}

#[test]
fn a_process_that_is_killed_leaves_no_model_but_a_beginning() {
    let model = glm();
    let place = Place::new(slow(&model));
    let mut child = place.command(&["pull", ID]).spawn().unwrap();
    let blobs = place.home.path().join("hub/models--org--tiny/blobs");
    let partial = blobs.join(format!("{}.incomplete", model.hash("model.safetensors")));
    let half = model.files["model.safetensors"].len() as u64 / 2;
    while partial.metadata().map_or(0, |m| m.len()) < half {
        assert!(child.try_wait().unwrap().is_none(), "it ended before the first half had arrived");
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!place.snapshot().exists());
    place.run(&[&GENERATE[..], &[ID, "--offline"]].concat()).refused(&["not in the Hugging Face cache"]);
    let list = place.run(&["models"]).ok().stdout;
    assert!(list.contains(ID) && list.contains("unfinished download"), "{list}");
    place.run(&[&GENERATE[..], &[ID]].concat()).ok();
    let starts: Vec<_> = place.hub.requests_for("model.safetensors").iter().map(|r| r.start()).collect();
    assert_eq!(starts, [None, Some(half as usize)]);
}

#[test]
fn two_processes_do_not_spoil_each_other() {
    let model = glm();
    let place = Place::new(LoopbackHub::of(model.clone()));
    let spawn = || place.command(&["pull", ID]).spawn().unwrap();
    let children: Vec<_> = (0..3).map(|_| spawn()).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    assert_eq!(place.hub.requests_for("model.safetensors").len(), 1);
    assert!(place.run(&["models", "verify"]).ok().stdout.contains(": ok ("));
}

#[test]
fn models_are_listed_verified_and_deleted() {
    let model = glm();
    let place = Place::new(LoopbackHub::of(model.clone()));
    let empty = place.run(&["models"]).ok();
    assert_eq!(empty.stdout, "");
    assert!(empty.stderr.starts_with("no models in "), "{}", empty.stderr);
    assert_eq!(place.run(&["models", "--json"]).ok().json(), serde_json::json!([]));

    place.run(&["pull", ID]).ok();
    let list = place.run(&["models"]).ok().stdout;
    assert!(list.contains(ID) && list.contains("main") && list.contains("complete"), "{list}");
    let json = place.run(&["models", "list", "--json"]).ok().json();
    assert_eq!((&json[0]["id"], &json[0]["revisions"][0]["lacks"]), (&ID.into(), &Value::Null));

    place.run(&["models", "verify", ID]).ok();
    let blob = place.snapshot().join("config.json").canonicalize().unwrap();
    std::fs::write(&blob, "{}").unwrap();
    let run = place.run(&["models", "verify"]);
    assert_eq!(run.code, Some(1), "{run:#?}");
    assert!(run.stdout.contains("config.json: has a hash that differs from its name"), "{}", run.stdout);

    place.run(&["models", "rm", "org/other"]).refused(&["org/other", "not in the Hugging Face cache"]);
    let run = place.run(&["models", "rm", ID]).ok();
    assert!(run.stderr.contains("deleted"), "{}", run.stderr);
    assert_eq!(place.run(&["models"]).ok().stdout, "");
    place.run(&["models", "verify", ID]).refused(&[ID]);
}

#[test]
fn an_incomplete_model_is_completed() {
    let model = glm();
    let place = Place::new(LoopbackHub::of(model.clone()));
    place.run(&["pull", ID]).ok();
    std::fs::remove_file(place.snapshot().join("model.safetensors").canonicalize().unwrap()).unwrap();
    let generate = [&GENERATE[..], &[ID]].concat();
    place
        .run(&[&generate[..], &["--offline"]].concat())
        .refused(&["incomplete", "model.safetensors is missing"]);
    place.run(&generate).ok();
}
