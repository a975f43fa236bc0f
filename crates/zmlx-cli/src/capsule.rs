//! Capsules: what a bench or a validation found, with all that is needed to judge and to repeat it, as one JSON file.

pub(crate) mod bench;
pub(crate) mod build;
pub(crate) mod compare;
pub(crate) mod facts;
pub(crate) mod grid;
pub(crate) mod machine;
pub(crate) mod model;
pub(crate) mod plot;
pub(crate) mod report;
pub(crate) mod stats;
pub(crate) mod validate;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::engine::About;
use crate::output;
use bench::BenchRecord;
use build::Build;
use machine::Machine;
use model::ModelFacts;
use validate::ValidateRecord;

/// The version of the format that this program writes and reads.
pub(crate) const FORMAT: u32 = 1;

/// A capsule of zmlx: the record of one bench or one validation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Capsule {
    /// The version of this format: 1.
    #[schemars(range(min = 1, max = 1))]
    pub(crate) format: u32,
    /// Which of the two records is there.
    pub(crate) kind: Kind,
    /// When the run ended: RFC 3339, in UTC.
    pub(crate) date: String,
    /// The arguments, the program first.
    pub(crate) command: Vec<String>,
    /// The program.
    pub(crate) zmlx: Build,
    /// The machine.
    pub(crate) machine: Machine,
    /// Engines of other projects that computed, and their versions.
    pub(crate) engines: BTreeMap<String, String>,
    /// The model.
    pub(crate) model: ModelFacts,
    /// The backend that computed.
    pub(crate) backend: BackendFacts,
    /// Environment variables that may matter to the result.
    pub(crate) environment: BTreeMap<String, String>,
    /// What the model was given.
    pub(crate) prompts: Vec<Prompt>,
    /// What a bench measured; there if `kind` is `bench`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) bench: Option<BenchRecord>,
    /// What a validation found; there if `kind` is `validate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) validate: Option<ValidateRecord>,
}

/// What was run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Bench,
    Validate,
}

/// A backend as it was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct BackendFacts {
    /// `cpu` or `mlx`.
    pub(crate) name: String,
    /// Name and particulars: `cpu (avx2, 8 threads)`.
    pub(crate) description: String,
    /// Threads that compute.
    pub(crate) threads: usize,
}

/// A token sequence that a model was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Prompt {
    /// What it is called.
    pub(crate) name: String,
    /// Its length.
    pub(crate) n_tokens: usize,
    /// SHA-256 of the token ids, each as four bytes, the lowest first.
    pub(crate) sha256: String,
}

impl Prompt {
    pub(crate) fn new(name: impl Into<String>, tokens: &[u32]) -> Self {
        let mut hash = Sha256::new();
        for token in tokens {
            hash.update(token.to_le_bytes());
        }
        Self { name: name.into(), n_tokens: tokens.len(), sha256: format!("{:x}", hash.finalize()) }
    }
}

/// What was found.
#[derive(Clone, Debug)]
pub(crate) enum Record {
    Bench(BenchRecord),
    Validate(ValidateRecord),
}

/// What a run was made with. Of several backends the first is the capsule's; each test names its own.
pub(crate) struct Context<'a> {
    pub(crate) model: ModelFacts,
    pub(crate) backends: &'a [&'a About],
    pub(crate) prompts: Vec<Prompt>,
}

impl Capsule {
    /// The record, with what the machine, the build and the environment are now.
    pub(crate) fn new(record: Record, context: Context<'_>) -> Result<Self> {
        let Some(main) = context.backends.first() else { bail!("a capsule without a backend") };
        let engines = context.backends.iter().filter_map(|about| about.engine.clone());
        let (kind, bench, validate) = match record {
            Record::Bench(record) => (Kind::Bench, Some(record), None),
            Record::Validate(record) => (Kind::Validate, None, Some(record)),
        };
        Ok(Self {
            format: FORMAT,
            kind,
            date: now()?,
            command: std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect(),
            zmlx: Build::this(),
            machine: Machine::probe(),
            engines: engines.map(|(name, version)| (name.to_owned(), version)).collect(),
            model: context.model,
            backend: BackendFacts {
                name: main.name.to_owned(),
                description: main.text.clone(),
                threads: main.n_threads,
            },
            environment: environment(),
            prompts: context.prompts,
            bench,
            validate,
        })
    }

    /// Reads a capsule; errors name the file and the field.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = crate::source::read_text(path)?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    fn parse(text: &str) -> Result<Self> {
        // The version first: the fields of another may be anything.
        let value: serde_json::Value = serde_json::from_str(text).context("not a capsule")?;
        let Some(format) = value.get("format") else { bail!("not a capsule: it has no field `format`") };
        if format.as_u64() != Some(u64::from(FORMAT)) {
            bail!("format: a capsule of version {format}, but this program reads version {FORMAT}");
        }
        let parser = &mut serde_json::Deserializer::from_str(text);
        let capsule: Self = serde_path_to_error::deserialize(&mut *parser)?;
        parser.end().context("after the capsule")?;
        match (capsule.kind, &capsule.bench, &capsule.validate) {
            (Kind::Bench, Some(_), None) | (Kind::Validate, None, Some(_)) => {}
            (Kind::Bench, ..) => bail!("kind: bench, which takes the field `bench` and no `validate`"),
            (Kind::Validate, ..) => bail!("kind: validate, which takes the field `validate` and no `bench`"),
        }
        Ok(capsule)
    }
}

/// Writes a capsule.
pub(crate) fn write(path: &Path, capsule: &Capsule) -> Result<()> {
    output::write_file(path, |out| {
        serde_json::to_writer_pretty(&mut *out, capsule)?;
        Ok(out.write_all(b"\n")?)
    })
}

/// A measure that may not be a number: JSON has no NaN, so it becomes null.
pub(crate) fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

fn now() -> Result<String> {
    Ok(jiff::Timestamp::now().round(jiff::Unit::Second)?.to_string())
}

/// The variables that change what is computed or how fast.
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
            let error = output::message(&Capsule::parse(text).unwrap_err());
            assert!(error.contains(tells), "{error:?} does not tell {tells:?}");
        }
    }
}
