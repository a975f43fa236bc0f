//! Capsules: the results of a bench or a validation, with everything that is needed to judge and repeat it, as one JSON
//! file.

pub mod bench;
mod build;
pub mod compare;
pub mod facts;
mod machine;
pub mod model;
pub mod validate;

use std::collections::BTreeMap;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{BackendInfo, Error, Result};
use bench::BenchRecord;
pub use build::Build;
pub use machine::Machine;
use model::ModelFacts;
use validate::ValidateRecord;

/// The version of the format that this program writes and reads.
pub const FORMAT: u32 = 1;

/// A capsule of zmlx: the record of one bench or one validation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Capsule {
    /// The version of this format: 1.
    #[schemars(range(min = 1, max = 1))]
    pub format: u32,
    /// Whether this is the record of a bench or of a validation.
    pub kind: Kind,
    /// When the run ended: RFC 3339, in UTC.
    pub date: String,
    /// The arguments, beginning with the program.
    pub command: Vec<String>,
    /// The program.
    pub zmlx: Build,
    /// The machine.
    pub machine: Machine,
    /// Engines of other projects that were used, and their versions.
    pub engines: BTreeMap<String, String>,
    /// The model.
    pub model: ModelFacts,
    /// The backend that computed.
    pub backend: BackendFacts,
    /// Environment variables that may affect the result.
    pub environment: BTreeMap<String, String>,
    /// The token sequences that the model was given.
    pub prompts: Vec<Prompt>,
    /// The results of a bench; present if `kind` is `bench`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bench: Option<BenchRecord>,
    /// The results of a validation; present if `kind` is `validate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validate: Option<ValidateRecord>,
}

/// What was run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A bench.
    Bench,
    /// A validation.
    Validate,
}

/// A backend that computed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackendFacts {
    /// `cpu` or `mlx`.
    pub name: String,
    /// The name with details: `cpu (avx2, 8 threads)`.
    pub description: String,
    /// Number of threads that compute.
    pub threads: usize,
}

/// A token sequence that a model was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Prompt {
    /// Its name.
    pub name: String,
    /// Its length in tokens.
    pub n_tokens: usize,
    /// SHA-256 of the token ids, each as four bytes in little-endian order.
    pub sha256: String,
}

impl Prompt {
    /// A prompt, with the hash of its tokens.
    pub fn new(name: impl Into<String>, tokens: &[u32]) -> Self {
        let mut hash = Sha256::new();
        for token in tokens {
            hash.update(token.to_le_bytes());
        }
        Self { name: name.into(), n_tokens: tokens.len(), sha256: format!("{:x}", hash.finalize()) }
    }
}

/// The results of a run.
#[derive(Clone, Debug)]
pub enum Record {
    /// By a bench.
    Bench(BenchRecord),
    /// By a validation.
    Validate(ValidateRecord),
}

/// The program, the model and the backends of a run.
#[derive(Debug)]
pub struct Context<'a> {
    /// The program.
    pub build: Build,
    /// The model.
    pub model: ModelFacts,
    /// The backends. The first one describes the capsule; each test names its own.
    pub backends: &'a [BackendInfo],
    /// The token sequences that the model was given.
    pub prompts: Vec<Prompt>,
}

impl Capsule {
    /// A capsule of the record, with the present machine and environment.
    ///
    /// # Errors
    /// If there is no backend.
    pub fn new(record: Record, context: Context<'_>) -> Result<Self> {
        let main = context.backends.first().ok_or(Error::NoBackend)?;
        let engines = context.backends.iter().filter_map(|info| info.engine.clone());
        let (kind, bench, validate) = match record {
            Record::Bench(record) => (Kind::Bench, Some(record), None),
            Record::Validate(record) => (Kind::Validate, None, Some(record)),
        };
        Ok(Self {
            format: FORMAT,
            kind,
            date: now(),
            command: std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect(),
            zmlx: context.build,
            machine: Machine::probe(),
            engines: engines.map(|(name, version)| (name.to_owned(), version)).collect(),
            model: context.model,
            backend: BackendFacts {
                name: main.name.to_owned(),
                description: main.description.clone(),
                threads: main.n_threads,
            },
            environment: environment(),
            prompts: context.prompts,
            bench,
            validate,
        })
    }

    /// Reads a capsule.
    ///
    /// # Errors
    /// If the file cannot be read or is not a capsule. The error names the file and the field.
    pub fn read(path: &Path) -> Result<Self> {
        let file = || path.display().to_string();
        let text = zmlx_kernels::read_text(path).map_err(|source| Error::Io { file: file(), source })?;
        Self::parse(&text).map_err(|problem| Error::Capsule { file: file(), problem })
    }

    /// Parses the text of a capsule.
    ///
    /// # Errors
    /// The problem, and the field that has it.
    pub fn parse(text: &str) -> Result<Self, String> {
        // The version is checked first, because other versions may have any fields.
        let value: serde_json::Value =
            serde_json::from_str(text).map_err(|e| format!("not a capsule: {e}"))?;
        let Some(format) = value.get("format") else {
            return Err("not a capsule: it has no field `format`".to_owned());
        };
        if value.get("recorded_by").or(value.get("decode")).is_some() {
            return Err("this is a golden file, not a capsule: `zmlx golden check` reads it".to_owned());
        }
        if format.as_u64() != Some(u64::from(FORMAT)) {
            return Err(format!(
                "format: a capsule of version {format}, but this program reads version {FORMAT}"
            ));
        }
        let parser = &mut serde_json::Deserializer::from_str(text);
        let capsule: Self = serde_path_to_error::deserialize(&mut *parser).map_err(|e| e.to_string())?;
        parser.end().map_err(|e| format!("after the capsule: {e}"))?;
        match (capsule.kind, &capsule.bench, &capsule.validate) {
            (Kind::Bench, Some(_), None) | (Kind::Validate, None, Some(_)) => Ok(capsule),
            (Kind::Bench, ..) => {
                Err("kind: bench, which takes the field `bench` and no `validate`".to_owned())
            }
            (Kind::Validate, ..) => {
                Err("kind: validate, which takes the field `validate` and no `bench`".to_owned())
            }
        }
    }

    /// The capsule as indented JSON that ends with a newline.
    ///
    /// # Errors
    /// If a number in it is not finite.
    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// The JSON Schema of capsules.
    pub fn schema() -> schemars::Schema {
        schemars::schema_for!(Self)
    }
}

/// A number for JSON. NaN and infinities become `None`, because JSON lacks them.
pub fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

fn now() -> String {
    let now = jiff::Timestamp::now();
    now.round(jiff::Unit::Second).unwrap_or(now).to_string()
}

/// The environment variables that change results or speed.
fn environment() -> BTreeMap<String, String> {
    const PREFIXES: [&str; 4] = ["ZMLX_", "MLX_", "OMP_", "MTL_"];
    const NAMES: [&str; 3] = ["RUST_LOG", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"];
    let text = |v: std::ffi::OsString| v.to_string_lossy().into_owned();
    let all = std::env::vars_os().map(|(name, value)| (text(name), text(value)));
    all.filter(|(name, _)| NAMES.contains(&name.as_str()) || PREFIXES.iter().any(|p| name.starts_with(p)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_hashed_as_little_endian_ids() {
        let prompt = Prompt::new("p", &[1, 0x0203]);
        assert_eq!(prompt.n_tokens, 2);
        // printf '\x01\0\0\0\x03\x02\0\0' | sha256sum
        assert_eq!(prompt.sha256, "87d07915e598f9a65ffc7cfeb2e4a8fe38a6883795bc4198508d50c6ce845b38");
    }

    #[test]
    fn what_is_no_capsule_is_told_by_field() {
        for (text, tells) in [
            ("", "not a capsule: EOF"),
            ("[1]", "not a capsule: it has no field `format`"),
            (r#"{"format": 2, "recorded_by": {}}"#, "a golden file"),
            (r#"{"kind": "bench"}"#, "it has no field `format`"),
            (
                r#"{"format": 2, "kind": 7}"#,
                "format: a capsule of version 2, but this program reads version 1",
            ),
            (r#"{"format": 1, "kind": "lunch"}"#, "kind: unknown variant `lunch`"),
            (
                r#"{"format": 1, "kind": "bench", "command": ["zmlx", 5]}"#,
                "command[1]: invalid type: integer `5`",
            ),
        ] {
            let error = Capsule::parse(text).unwrap_err();
            assert!(error.contains(tells), "{error:?} does not tell {tells:?}");
        }
    }
}
