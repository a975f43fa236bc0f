//! Loading a model.

use std::sync::Arc;

use zmlx_kernels::Backend;

use super::{End, Model};
use crate::architecture::{HeadSpec, Split};
use crate::cache_pool::unique_id;
use crate::loader::{Loader, Progress};
use crate::{Checkpoint, Result};

impl<B: Backend> Model<B> {
    /// Loads the model of a checkpoint onto a backend: of several ranks each loads its part ([`Backend::shard`]).
    ///
    /// # Errors
    /// [`Error::Split`](crate::Error::Split) if the model cannot be split among the backend's ranks;
    /// [`Error::Weights`](crate::Error::Weights) with every tensor that is missing, left over or does not fit; whatever
    /// the backend refuses.
    pub fn load(backend: B, checkpoint: &Checkpoint, progress: Progress<'_>) -> Result<Self> {
        let backend = Arc::new(backend);
        let reader = checkpoint.reader();
        let (shard, stage) = (backend.shard(), backend.stage());
        let name = checkpoint.name();
        let architecture = &checkpoint.architecture().shard(name, shard, &reader)?.stage(name, stage)?;
        let n_layers = architecture.layers.len();
        let mut loader = Loader::new(&*backend, checkpoint);
        let embed = (stage.rank == 0).then(|| loader.matrix(&architecture.embed)).transpose()?;
        let mut layers = Vec::with_capacity(n_layers);
        for spec in &architecture.layers {
            layers.push(loader.layer(spec)?);
            progress(layers.len(), n_layers);
        }
        let mut end = None;
        if stage.rank + 1 == stage.n_ranks {
            let norm = loader.vector(&architecture.norm)?;
            let (head, head_rows) = match (&architecture.head, &embed) {
                (HeadSpec::Own(head), _) => match head.split {
                    Split::Rows(part) => (loader.matrix(head)?, Some(shard.block(part.of))),
                    _ => (loader.matrix(head)?, None),
                },
                (HeadSpec::Tied(_), Some(embed)) => (embed.clone(), None),
                (HeadSpec::Tied(_), None) => (loader.matrix(&architecture.embed)?, None),
            };
            end = Some(End { norm, head, head_rows });
        }
        let inputs = &architecture.extras.per_layer_inputs;
        let per_layer_inputs = inputs.as_ref().map(|spec| loader.per_layer_inputs(spec)).transpose()?;
        architecture.extras.held_elsewhere.iter().for_each(|path| loader.reader.ignore(path));
        loader.reader.ignore_what_may_be_left();
        let weight_bytes = loader.n_bytes();
        loader.reader.finish()?;
        Ok(Self {
            id: unique_id(),
            eps: architecture.rms_norm_eps as f32,
            cache_of: architecture.caches(),
            architecture: architecture.clone(),
            per_layer_inputs,
            embed,
            layers,
            end,
            weight_bytes,
            lead: None,
            backend,
        })
    }
}
