//! The list of a model's files. It comes from outside, so everything in it is checked before it is used.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::digest::Digest;
use crate::name::is_commit;

/// No model has more files than this.
const MAX_FILES: usize = 10_000;

/// A model's files at a commit.
#[derive(Debug)]
pub(crate) struct Listing {
    /// The commit.
    pub(crate) commit: String,
    /// The files from which a model is loaded, sorted by name.
    pub(crate) files: Vec<RemoteFile>,
}

/// A file of a model on the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RemoteFile {
    /// Its path, relative to the model.
    pub(crate) path: String,
    /// Its hash, if the list contains it.
    pub(crate) digest: Option<Digest>,
    /// Its size in bytes, if the list contains it.
    pub(crate) size: Option<u64>,
}

#[derive(Deserialize)]
struct Answer {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

impl Listing {
    /// Parses the hub's answer.
    ///
    /// # Errors
    /// A description of what the answer is instead.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, String> {
        let answer: Answer = serde_json::from_slice(body).map_err(|e| format!("something else: {e}"))?;
        if !is_commit(&answer.sha) {
            return Err(format!("{:?} as the commit", shortened(&answer.sha)));
        }
        let mut files = BTreeMap::new();
        for sibling in answer.siblings.into_iter().filter(|sibling| is_wanted(&sibling.rfilename)) {
            let path = sibling.rfilename.clone();
            if !is_within(&path) {
                return Err(format!(
                    "the file name {:?}, which is not a path within a model",
                    shortened(&path)
                ));
            }
            files.insert(path, sibling.file()?);
        }
        if files.len() > MAX_FILES {
            return Err(format!("{} files", files.len()));
        }
        Ok(Self { commit: answer.sha, files: files.into_values().collect() })
    }
}

impl Sibling {
    fn file(self) -> Result<RemoteFile, String> {
        let (hash, size) = match self.lfs {
            Some(lfs) => (lfs.sha256, lfs.size.or(self.size)),
            None => (self.blob_id, self.size),
        };
        let wrong =
            |hash: &String| format!("{:?} as the hash of {:?}", shortened(hash), shortened(&self.rfilename));
        let digest = hash.map(|hash| Digest::parse(&hash).ok_or_else(|| wrong(&hash))).transpose()?;
        Ok(RemoteFile { path: self.rfilename, digest, size })
    }
}

/// True for files from which a model is loaded: weights, configurations, tokenizers, templates.
fn is_wanted(path: &str) -> bool {
    let is_kind = [".safetensors", ".json", ".jinja"].iter().any(|end| path.ends_with(end));
    let name = path.rsplit(['/', '\\']).next().unwrap_or(path);
    let is_tokenizer = name.starts_with("tokenizer") || name == "merges.txt" || name == "vocab.txt";
    match path.rsplit_once('/') {
        None => is_kind || is_tokenizer,
        Some(("additional_chat_templates", _)) => path.ends_with(".jinja"),
        // Folders contain the same model for other programs, so their files are left out. Names that lead out of the
        // model are kept, so that they are refused.
        Some((folder, _)) => (is_kind || is_tokenizer) && !is_within(folder),
    }
}

/// True for a path that stays within the folder to which it is relative, on every operating system.
fn is_within(path: &str) -> bool {
    let is_part = |part: &str| {
        let is_plain = |c: char| !c.is_control() && !matches!(c, '\\' | ':');
        !part.is_empty() && part != "." && part != ".." && part.len() <= 200 && part.chars().all(is_plain)
    };
    path.len() <= 1000 && path.split('/').all(is_part)
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn listing(files: &str) -> Result<Listing, String> {
        Listing::parse(format!(r#"{{"sha":"abc123","siblings":[{files}],"other":null}}"#).as_bytes())
    }

    fn paths(names: &[&str]) -> Result<Vec<String>, String> {
        let files: Vec<_> = names.iter().map(|n| serde_json::json!({"rfilename": n}).to_string()).collect();
        Ok(listing(&files.join(","))?.files.into_iter().map(|f| f.path).collect())
    }

    #[test]
    fn what_a_model_is_loaded_from_is_wanted() {
        let wanted = [
            "added_tokens.json",
            "additional_chat_templates/tool_use.jinja",
            "chat_template.jinja",
            "config.json",
            "merges.txt",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.model",
        ];
        let others = [
            ".gitattributes",
            "README.md",
            "model.gguf",
            "modeling_x.py",
            "onnx/config.json",
            "original/params.json",
            "pytorch_model.bin",
            "x.pth",
        ];
        assert_eq!(paths(&[&wanted[..], &others[..]].concat()).unwrap(), wanted);
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let long = format!("{}.json", "x".repeat(300));
        for name in [
            "../x.json",
            "/etc/x.json",
            "a/../../x.json",
            "./x.json",
            "a//x.json",
            "..\\x.json",
            "c:x.json",
            "x\u{0}.json",
            "x\n.json",
            long.as_str(),
        ] {
            let error = paths(&["config.json", name]).unwrap_err();
            assert!(error.contains("not a path within a model") && error.len() < 200, "{name:?}: {error}");
        }
        // An unwanted file with such a name has no effect.
        assert_eq!(paths(&["config.json", "../x.bin"]).unwrap(), ["config.json"]);
    }

    #[test]
    fn hashes_and_sizes_are_those_of_the_content() {
        let (sha1, sha256) = ("a".repeat(40), "B".repeat(64));
        let listing = listing(&format!(
            r#"{{"rfilename":"config.json","size":7,"blobId":"{sha1}"}},
               {{"rfilename":"m.safetensors","size":5,"blobId":"{sha1}","lfs":{{"sha256":"{sha256}","size":9,"pointerSize":3}}}},
               {{"rfilename":"t.json","size":null,"lfs":null}}"#
        ));
        let files = listing.unwrap().files;
        assert_eq!((files[0].digest.clone(), files[0].size), (Some(Digest::Git(sha1)), Some(7)));
        assert_eq!(
            (files[1].digest.clone(), files[1].size),
            (Some(Digest::Sha256(sha256.to_lowercase())), Some(9))
        );
        assert_eq!((files[2].digest.clone(), files[2].size), (None, None));
    }

    #[test]
    fn other_answers_are_told() {
        for (body, tells) in [
            ("<html>", "something else"),
            ("[]", "something else"),
            (r#"{"siblings":[]}"#, "sha"),
            (r#"{"sha":"abc"}"#, "siblings"),
            (r#"{"sha":"../x","siblings":[]}"#, "as the commit"),
            (r#"{"sha":"abc","siblings":[{"rfilename":5}]}"#, "something else"),
            (r#"{"sha":"abc","siblings":[{"rfilename":"a.json","size":-1}]}"#, "something else"),
            (r#"{"sha":"abc","siblings":[{"rfilename":"a.json","blobId":"../x"}]}"#, "as the hash of"),
        ] {
            let error = Listing::parse(body.as_bytes()).unwrap_err();
            assert!(error.contains(tells), "{body}: {error}");
        }
    }
}
