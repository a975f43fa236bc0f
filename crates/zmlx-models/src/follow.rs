//! A model that several ranks share: rank 0 leads, the others follow.
//!
//! Rank 0 alone has requests, an engine and a sampler. What it does to its caches it tells the others as [`Order`]s, and each of
//! them does the same with its own part of the model ([`follow`]). So the ranks take part in the same sums in the same order,
//! whatever rank 0 schedules.

use std::collections::HashMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use zmlx_kernels::{Backend, Fusion, HostNeeds, KvFormat, Logits, SampleSettings, Span};

use crate::{CachePool, Error, Model, PoolOptions, Result};

/// Tells the other ranks what rank 0 does.
pub trait Lead: fmt::Debug + Send + Sync {
    /// Passes an order on. All ranks get all orders, in the order in which they were given.
    fn tell(&self, order: &Order);

    /// A step has failed on rank 0 that the others were told to compute: they are no longer alike, and must end.
    fn give_up(&self, error: &Error);
}

/// What rank 0 has done, or begins to do, with one of its pools of caches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    pub(crate) pool: u64,
    pub(crate) change: Change,
}

/// Slots are those of the caches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Change {
    Open { format: PoolFormat },
    Close,
    Release { slot: usize },
    Fork { from: usize, to: usize, n_tokens: usize },
    Truncate { slot: usize, n_tokens: usize },
    Step { spans: Vec<StepSpan>, ids: StepIds },
}

/// The tokens of a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum StepIds {
    Known(Vec<u32>),
    /// One for each span, which rank 0 chooses from this row of the logits of the step before.
    Chosen {
        rows: Vec<usize>,
    },
}

/// A [`KvFormat`]: the bits, 0 for the backend's own, and the size of groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PoolFormat(u8, usize);

impl From<KvFormat> for PoolFormat {
    fn from(format: KvFormat) -> Self {
        match format {
            KvFormat::Native => Self(0, 0),
            KvFormat::Int8 { group_size } => Self(8, group_size),
            KvFormat::Int4 { group_size } => Self(4, group_size),
        }
    }
}

impl From<PoolFormat> for KvFormat {
    fn from(PoolFormat(bits, group_size): PoolFormat) -> Self {
        match bits {
            0 => Self::Native,
            4 => Self::Int4 { group_size },
            _ => Self::Int8 { group_size },
        }
    }
}

/// A [`Span`]: slot, start, number of tokens and of logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StepSpan(usize, usize, usize, usize);

impl From<&Span> for StepSpan {
    fn from(span: &Span) -> Self {
        Self(span.slot, span.start, span.n_tokens, span.n_logits())
    }
}

impl From<StepSpan> for Span {
    fn from(StepSpan(slot, start, n_tokens, n_logits): StepSpan) -> Self {
        let logits = match n_logits {
            0 => Logits::None,
            n if n == n_tokens => Logits::All,
            _ => Logits::Last,
        };
        Self { slot, start, n_tokens, logits }
    }
}

/// Does what rank 0 does, with this rank's part of the model, until `next` has no more orders.
///
/// # Errors
/// If this rank cannot do what rank 0 did: the ranks are no longer alike then.
pub fn follow<B: Backend>(
    model: &Model<B>,
    fusion: &Fusion,
    mut next: impl FnMut() -> Option<Order>,
) -> Result<()> {
    let b = model.backend();
    let (mut pools, mut last) = (HashMap::new(), None);
    while let Some(Order { pool: id, change }) = next() {
        if let Change::Open { format } = change {
            let options = PoolOptions { max_bytes: None, format: format.into() };
            pools.insert(id, model.pool(options)?);
            continue;
        }
        let pool: &mut CachePool<B> = pools.get_mut(&id).ok_or(Error::Order { what: "a pool of caches" })?;
        match change {
            Change::Open { .. } => {}
            Change::Close => drop(pools.remove(&id)),
            Change::Release { slot } => pool.caches.iter_mut().for_each(|cache| b.release(cache, slot)),
            Change::Fork { from, to, n_tokens } => {
                pool.caches.iter_mut().try_for_each(|cache| b.fork(cache, from, to, n_tokens))?;
            }
            Change::Truncate { slot, n_tokens } => {
                pool.caches.iter_mut().try_for_each(|cache| b.truncate(cache, slot, n_tokens))?;
            }
            Change::Step { spans, ids } => {
                let spans: Vec<Span> = spans.into_iter().map(Span::from).collect();
                let ids = match (ids, &last) {
                    (StepIds::Known(ids), _) => b.indices(&ids, &[ids.len()])?,
                    (StepIds::Chosen { rows }, Some(logits)) => chosen(model, logits, &rows)?,
                    (StepIds::Chosen { .. }, None) => {
                        return Err(Error::Order { what: "logits of a step before" });
                    }
                };
                let logits = model.run(pool, (&ids, &spans), fusion, None)?;
                let logits = b.eval_async(logits, &[&ids], HostNeeds::Choices)?;
                if spans.iter().any(|span| span.n_logits() == 0) {
                    b.eval_caches(&pool.caches)?;
                }
                last = Some(logits);
            }
        }
    }
    Ok(())
}

/// The tokens that rank 0 has chosen from these rows of the logits and not read yet.
fn chosen<B: Backend>(model: &Model<B>, logits: &B::Tensor, rows: &[usize]) -> Result<B::Indices> {
    let b = model.backend();
    if b.shard().is_whole() {
        // Rank 0 alone has the embedding.
        return Ok(b.indices(&vec![0; rows.len()], &[rows.len()])?);
    }
    let most_probable =
        SampleSettings { temperature: 0.0, top_k: None, top_p: None, min_p: None, repetition: None, seed: 0 };
    let vocab = model.architecture().vocab_size;
    let rows: Vec<_> = rows.iter().map(|row| (*row, most_probable)).collect();
    let own = b.sample(logits, &rows)?.into_iter().collect::<Option<Vec<_>>>();
    let own = own.ok_or(Error::Order { what: "tokens that the device chooses" })?;
    let own = b.join_indices(&own.iter().collect::<Vec<_>>())?;
    Ok(b.of_rank_0(own, vocab)?)
}
