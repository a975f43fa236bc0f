//! What is particular to a backend that is one of several ranks.

use std::sync::Arc;

use zmlx_core::{Error, Result, Shard};

use super::CudaBackend;
use crate::NAME;
use crate::communicator::{Communicator, Exchange};
use crate::tensor::{CudaIndices, CudaTensor, Pending, RankSum, Shape, ensure};

impl CudaBackend {
    /// The backend as one of several ranks, each of which has a part of every layer (tensor parallelism). Waits for the others.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if there is no NCCL; [`Error::Fault`] if it cannot connect the GPUs.
    pub fn with_ranks(self, shard: Shard, exchange: Exchange<'_>) -> Result<Self> {
        let communicator = Communicator::new(&self.device, shard, exchange)?;
        Ok(Self { ranks: Some(Arc::new(communicator)), ..self })
    }

    /// The backend as one of several ranks, each of which has some of the layers (pipeline parallelism). Waits for the others.
    ///
    /// # Errors
    /// As [`CudaBackend::with_ranks`].
    pub fn with_stages(self, shard: Shard, exchange: Exchange<'_>) -> Result<Self> {
        let communicator = Communicator::new(&self.device, shard, exchange)?;
        Ok(Self { stages: Some(Arc::new(communicator)), ..self })
    }

    /// The GPUs that this one computes with.
    pub fn communicator(&self) -> Option<&Arc<Communicator>> {
        self.ranks.as_ref().or(self.stages.as_ref())
    }

    pub(super) fn sum_of_ranks(&self, x: CudaTensor) -> Result<CudaTensor> {
        let Some(ranks) = self.ranks.as_ref().filter(|_| x.shape.len() > 0) else { return Ok(x) };
        let shape = x.shape;
        Ok(CudaTensor::pending(shape, Pending::RankSum(RankSum { ranks: Arc::clone(ranks), x })))
    }

    pub(super) fn columns_of_ranks(&self, x: CudaTensor, width: usize, n: usize) -> Result<CudaTensor> {
        const OP: &str = "gather_columns";
        let Some(ranks) = &self.ranks else { return Ok(x) };
        ensure(x.dims().len() == 2, OP, "x", "[n_rows, width]", &x)?;
        let (n_rows, own) = (x.shape.n_rows(), x.shape.last());
        let shape = Shape::new(OP, &[n_rows, n])?;
        if shape.len() == 0 {
            return CudaTensor::fresh(&self.device, shape).map(|(tensor, _)| tensor);
        }
        let all = ranks.gather_columns(&x.contiguous(&self.device)?, [n_rows, own, width, n])?;
        Ok(CudaTensor::ready(shape, all))
    }

    pub(super) fn indices_of_rank_0(&self, indices: CudaIndices, n_values: usize) -> Result<CudaIndices> {
        let Some(ranks) = &self.ranks else { return Ok(indices) };
        let buffer = ranks.of_rank_0(indices.at(), indices.shape.len())?;
        Ok(CudaIndices::written(&self.device, indices.shape, buffer, n_values))
    }

    /// Whether a step of single tokens can be recorded.
    pub(super) fn can_be_recorded(&self, n_tokens: usize) -> bool {
        self.stages.is_none() && self.ranks.as_ref().is_none_or(|ranks| ranks.can_be_recorded(n_tokens))
    }

    /// The ranks that have the other layers.
    pub(super) fn stages(&self, op: &'static str) -> Result<&Communicator> {
        let alone = || Error::Unsupported { op, backend: NAME, why: "no other rank has layers".into() };
        self.stages.as_deref().ok_or_else(alone)
    }
}
