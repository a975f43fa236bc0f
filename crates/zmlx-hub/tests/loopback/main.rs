//! Downloads from a hub on the loopback interface that breaks connections, and truncates and changes what it sends.
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

mod answers;
mod hub;
mod redirects;
mod transfers;

use std::path::Path;
use std::sync::Mutex;

use hub::{COMMIT, ID, LoopbackHub, Model};
use zmlx_hub::{Cache, Environment, Error, Hub, ModelName, Notice, Pulled, Result};

/// A cache of its own, and a hub from which it is filled.
struct Trial {
    dir: tempfile::TempDir,
    hub: LoopbackHub,
    variables: Vec<(&'static str, String)>,
}

impl Trial {
    fn new(hub: LoopbackHub) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), hub, variables: Vec::new() }
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.variables.push((name, value.to_owned()));
        self
    }

    fn environment(&self) -> Environment {
        let home = self.dir.path().to_str().unwrap();
        let ours = [("HF_HOME", home), ("HF_ENDPOINT", self.hub.url.as_str())];
        Environment::new(ours.into_iter().chain(self.variables.iter().map(|(n, v)| (*n, v.as_str()))), None)
    }

    fn pull(&self) -> Result<Pulled> {
        Hub::of(&self.environment())?.pull(&name(), &|_| ())
    }

    /// The pull fails with these texts in its error, and nothing is left that looks like a model.
    #[track_caller]
    fn refused(&self, texts: &[&str]) -> Error {
        let error = self.pull().unwrap_err();
        for text in texts {
            assert!(error.to_string().contains(text), "{text:?} is not in {error}");
        }
        assert!(matches!(self.found(), Err(Error::NotCached { .. })));
        assert!(!self.model_dir().join("snapshots").exists());
        error
    }

    fn found(&self) -> Result<std::path::PathBuf> {
        Cache::of(&self.environment()).unwrap().find(&name())
    }

    fn model_dir(&self) -> std::path::PathBuf {
        self.dir.path().join("hub/models--org--tiny")
    }

    fn partial(&self, model: &Model, file: &str) -> std::path::PathBuf {
        self.model_dir().join(format!("blobs/{}.incomplete", model.hash(file)))
    }

    /// Checks that every wanted file exists with its content.
    #[track_caller]
    fn holds(&self, model: &Model) {
        let dir = self.found().unwrap();
        for name in model.wanted() {
            assert!(std::fs::read(dir.join(name)).unwrap() == model.files[name], "{name}");
        }
        let blobs = std::fs::read_dir(self.model_dir().join("blobs")).unwrap();
        let left: Vec<_> = blobs.map(|e| e.unwrap().path()).filter(|p| p.extension().is_some()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

fn name() -> ModelName {
    ID.parse().unwrap()
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_model_comes_whole_and_once() {
    let model = Model::tiny();
    let trial = Trial::new(LoopbackHub::of(model.clone()));
    let (begun, n_bytes) = (Mutex::new(None), Mutex::new(0));
    let pulled = Hub::of(&trial.environment()).unwrap().pull(&name(), &|notice| match notice {
        Notice::Begin { n_files, bytes, present_bytes } => {
            *begun.lock().unwrap() = Some((n_files, bytes, present_bytes))
        }
        Notice::Bytes(n) => *n_bytes.lock().unwrap() += n,
        _ => {}
    });
    let pulled = pulled.unwrap();
    assert_eq!((pulled.commit.as_str(), &pulled.dir), (COMMIT, &trial.found().unwrap()));
    trial.holds(&model);
    let total: u64 = model.wanted().iter().map(|name| model.files[*name].len() as u64).sum();
    assert_eq!(*begun.lock().unwrap(), Some((5, total, 0)));
    assert_eq!(*n_bytes.lock().unwrap(), total as i64);
    for unwanted in ["README.md", "model.gguf"] {
        assert!(trial.hub.requests_for(unwanted).is_empty());
        assert!(!pulled.dir.join(unwanted).exists());
    }
    assert_eq!(std::fs::read_to_string(trial.model_dir().join("refs/main")).unwrap(), COMMIT);
    // Again: now only the list is requested.
    let before = trial.hub.requests().len();
    trial.pull().unwrap();
    assert_eq!(trial.hub.requests().len(), before + 1);
    let models = Cache::of(&trial.environment()).unwrap().list().unwrap();
    assert_eq!(
        (models[0].id.as_str(), models[0].revisions[0].refs.as_slice()),
        (ID, &["main".to_owned()][..])
    );
}

#[test]
fn links_are_those_of_other_tools() {
    let model = Model::tiny();
    let trial = Trial::new(LoopbackHub::of(model.clone()));
    let dir = trial.pull().unwrap().dir;
    for (file, up) in
        [("model.safetensors", "../.."), ("additional_chat_templates/tool use.jinja", "../../..")]
    {
        let target = std::fs::read_link(dir.join(file)).unwrap();
        assert_eq!(target, Path::new(up).join("blobs").join(model.hash(file)));
    }
    // The cache can be moved, because links are relative.
    let moved = trial.dir.path().join("elsewhere");
    std::fs::rename(trial.dir.path().join("hub"), &moved).unwrap();
    Cache::new(moved).find(&name()).unwrap();
}

#[test]
fn a_revision_is_asked_for_by_name_and_by_commit() {
    let trial = Trial::new(LoopbackHub::of(Model::tiny()));
    let hub = Hub::of(&trial.environment()).unwrap();
    hub.pull(&name().at("refs/pr/1").unwrap(), &|_| ()).unwrap();
    assert!(trial.hub.requests()[0].path.contains("/revision/refs%2Fpr%2F1?"));
    let cache = Cache::of(&trial.environment()).unwrap();
    cache.find(&name().at("refs/pr/1").unwrap()).unwrap();
    cache.find(&name().at(COMMIT).unwrap()).unwrap();
    assert!(matches!(cache.find(&name()), Err(Error::NotCached { .. })));
    hub.pull(&name().at(COMMIT).unwrap(), &|_| ()).unwrap();
    assert!(!trial.model_dir().join("refs").join(COMMIT).exists());
}

#[test]
fn without_the_network_nothing_is_asked() {
    let trial = Trial::new(LoopbackHub::of(Model::tiny())).with("HF_HUB_OFFLINE", "1");
    assert!(matches!(trial.refused(&["HF_HUB_OFFLINE"]), Error::Offline { .. }));
    assert!(trial.hub.requests().is_empty());
}

#[test]
fn two_downloads_of_one_model_share_the_work() {
    let model = Model::tiny();
    let slow = model.clone();
    let trial = Trial::new(LoopbackHub::start(move |request, _| {
        if request.is_for("model.safetensors") {
            std::thread::sleep(std::time::Duration::from_millis(500));
        }
        slow.answer(request)
    }));
    let waited = Mutex::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let hub = Hub::of(&trial.environment()).unwrap();
                let count = |notice: Notice<'_>| {
                    *waited.lock().unwrap() += i32::from(matches!(notice, Notice::Waiting { .. }))
                };
                hub.pull(&name(), &count).unwrap();
            });
        }
    });
    trial.holds(&model);
    assert_eq!(trial.hub.requests_for("model.safetensors").len(), 1);
    assert!(*waited.lock().unwrap() >= 2);
}

#[test]
fn what_lies_in_the_cache_is_held_to_its_hash() {
    let model = Model::tiny();
    let trial = Trial::new(LoopbackHub::of(model.clone()));
    trial.pull().unwrap();
    let cache = Cache::of(&trial.environment()).unwrap();
    assert!(cache.verify(&name(), |_| ()).unwrap().iter().all(|file| file.fault.is_none()));
    let blob = trial.model_dir().join("blobs").join(model.hash("model.safetensors"));
    let mut bytes = std::fs::read(&blob).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&blob, bytes).unwrap();
    std::fs::remove_file(trial.model_dir().join("blobs").join(model.hash("tokenizer.json"))).unwrap();
    let verified = cache.verify(&name(), |_| ()).unwrap();
    let faults: Vec<_> =
        verified.iter().filter(|f| f.fault.is_some()).map(|f| f.path.file_name().unwrap()).collect();
    assert_eq!(faults, ["model.safetensors", "tokenizer.json"]);
    assert!(cache.verify(&name().at("other").unwrap(), |_| ()).is_err());
}
