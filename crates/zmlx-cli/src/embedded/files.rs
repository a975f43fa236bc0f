//! The files of the built-in model. The folder `model` contains links to the fixture, so that a package of this crate
//! contains the files.

use bytes::Bytes;

use super::{ChatTemplate, Checkpoint, Result, Tokenizer};
#[cfg(feature = "proof")]
use super::{Golden, oracle};

const NAME: &str = "austen-glm4-moe-lite-4bit";

macro_rules! file {
    ($include:ident, $name:literal) => {
        $include!(concat!(env!("CARGO_MANIFEST_DIR"), "/model/", $name))
    };
}

static CONFIG: &str = file!(include_str, "config.json");
static GENERATION_CONFIG: &str = file!(include_str, "generation_config.json");
static WEIGHTS: &[u8] = file!(include_bytes, "model.safetensors");
static TOKENIZER: &[u8] = file!(include_bytes, "tokenizer.json");
static TOKENIZER_CONFIG: &str = file!(include_str, "tokenizer_config.json");
static CHAT_TEMPLATE: &str = file!(include_str, "chat_template.jinja");
#[cfg(feature = "proof")]
static GOLDEN: &str = file!(include_str, "golden.json");

pub(crate) fn checkpoint() -> Result<Checkpoint> {
    let shards = vec![("model.safetensors".to_owned(), Bytes::from_static(WEIGHTS))];
    Ok(Checkpoint::from_parts(NAME, CONFIG, Some(GENERATION_CONFIG), shards)?)
}

pub(crate) fn tokenizer() -> Result<Tokenizer> {
    Ok(Tokenizer::from_json("tokenizer.json", TOKENIZER)?)
}

pub(crate) fn chat_template() -> Result<ChatTemplate> {
    Ok(ChatTemplate::from_parts(NAME, Some(TOKENIZER_CONFIG), Some(CHAT_TEMPLATE.to_owned()))?)
}

#[cfg(feature = "proof")]
pub(crate) fn oracle_checkpoint() -> Result<oracle::Checkpoint> {
    Ok(oracle::Checkpoint::from_bytes(CONFIG, &[WEIGHTS])?)
}

/// The tokens that the reference engine generated for the model's prompts.
#[cfg(feature = "proof")]
pub(crate) fn golden() -> Result<Golden> {
    Ok(serde_json::from_str(GOLDEN)?)
}

#[cfg(all(test, feature = "proof"))]
mod tests {
    use super::*;

    #[test]
    fn the_default_prompt_is_the_recorded_one() {
        let golden = golden().unwrap();
        assert_eq!(golden.prompt("novel").unwrap().text, crate::embedded::NOVEL);
        assert_eq!(golden.model.name, NAME);
    }
}
