//! What one of several ranks holds and computes of a model.
//!
//! # Tensor parallelism
//!
//! Attention is split by heads: the rows of the projections into heads, the columns of the projection out of them. MLPs are
//! split by their inner width: the rows of gate and up, the columns of down. So each rank's result is one summand of the
//! layer's, and the sums meet in [`Backend::all_sum`](zmlx_kernels::Backend::all_sum), once after attention and once after
//! the MLP. The rows of the head are split, and the logits gathered. Norms, routers and the embedding are whole on every rank, and
//! so is a head that is the embedding.
//!
//! Columns of quantised weights are split between groups only. Where experts' groups cannot be shared out evenly, each rank
//! holds some of the experts whole. MLPs that every token goes through may be split unevenly, and a rank may have no part of the
//! shared experts at all. Biases after partial sums are those of rank 0 alone. Norms over all heads gather the heads.
//!
//! # Pipeline parallelism
//!
//! Each rank holds some layers in a row. The first has the embedding, the last the final norm and the head.

use std::ops::Range;

use zmlx_kernels::Shard;

use super::{
    Architecture, ExpertsSpec, FeedForwardSpec, GqaSpec, HeadSpec, LayerSpec, LinearSpec, MatrixSpec,
    MixerSpec, MlaSpec, MlpSpec, MoeSpec, QuerySpec, VectorSpec,
};
use crate::{Error, Result, TensorReader};

/// Where a part of something in the files begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Its first row, column, value, head or expert.
    pub start: usize,
    /// The number of all.
    pub of: usize,
}

impl Slice {
    /// The `n` things of the part.
    pub(crate) fn range(self, n: usize) -> Range<usize> {
        self.start..self.start.saturating_add(n)
    }
}

/// Which part of a matrix a rank holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// All of it.
    None,
    /// Some of its rows.
    Rows(Slice),
    /// Some of its columns.
    Columns(Slice),
}

/// Which part of a mixture's experts a rank holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertSplit {
    /// All of them.
    None,
    /// A part of the width of each.
    Width(Slice),
    /// Some of them, whole.
    Experts(Slice),
}

/// The most ranks that an error message considers.
const MAX_RANKS: usize = 64;

/// A result whose error says what cannot be split.
type Fits<T> = std::result::Result<T, String>;

impl Architecture {
    /// The part of one rank. `reader` tells the sizes of the groups that must not be cut.
    ///
    /// # Errors
    /// [`Error::Split`] if heads, widths or groups cannot be shared out, or a layer has a block that is not split yet.
    pub(crate) fn shard(&self, model: &str, shard: Shard, reader: &TensorReader<'_>) -> Result<Self> {
        if shard.is_whole() {
            return Ok(self.clone());
        }
        self.part(shard, reader).map_err(|what| {
            let fits = |n: &usize| self.part(Shard { rank: 0, n_ranks: *n }, reader).is_ok();
            let fits = (2..=MAX_RANKS).filter(fits).collect();
            Error::Split { model: model.to_owned(), n_ranks: shard.n_ranks, what, fits }
        })
    }

    fn part(&self, shard: Shard, reader: &TensorReader<'_>) -> Fits<Self> {
        let mut cut = Cut { shard, reader, held_elsewhere: Vec::new() };
        let mut part = self.clone();
        for (i, layer) in part.layers.iter_mut().enumerate() {
            let refused = |what: &str| format!("{}.{i} has {what}", self.layers_path);
            match &mut layer.mixer {
                MixerSpec::Attention(a) => cut.attention(a)?,
                MixerSpec::Latent(a) => cut.latent(a)?,
                MixerSpec::Shared(_) => return Err(refused("attention to another layer's keys")),
                MixerSpec::Delta(_) => return Err(refused("linear attention")),
                MixerSpec::ShortConv(_) => return Err(refused("a short convolution")),
            }
            match &mut layer.feed_forward {
                FeedForwardSpec::Dense(mlp) => {
                    let n_groups = cut.mlp(mlp);
                    if n_groups < shard.n_ranks {
                        return Err(format!("{} has {n_groups} groups of columns", mlp.down.path));
                    }
                }
                FeedForwardSpec::Moe(moe) => cut.mixture(moe)?,
                FeedForwardSpec::Beside(_) => return Err(refused("an MLP beside a mixture")),
            }
        }
        if let HeadSpec::Own(head) = &mut part.head {
            let (n, rows) = (head.n_out, shard.block(head.n_out));
            let own = (rows * shard.rank).min(n)..(rows * (shard.rank + 1)).min(n);
            if rows * (shard.n_ranks - 1) >= n {
                return Err(format!("{} has {n} rows", head.path));
            }
            matrix_rows(head, own);
        }
        part.extras.held_elsewhere = cut.held_elsewhere;
        Ok(part)
    }

    /// The layers of one rank of those that each hold some.
    ///
    /// # Errors
    /// [`Error::Stages`] if there are fewer layers than ranks, or layers need what another rank has.
    pub(crate) fn stage(mut self, model: &str, stage: Shard) -> Result<Self> {
        let (n_ranks, n_layers) = (stage.n_ranks, self.layers.len());
        if stage.is_whole() {
            return Ok(self);
        }
        let refused = |what: String| Err(Error::Stages { model: model.to_owned(), n_ranks, what });
        if n_layers < n_ranks {
            return refused(format!("it has {n_layers} layers"));
        }
        let is_shared = |layer: &LayerSpec| matches!(layer.mixer, MixerSpec::Shared(_));
        if let Some(i) = self.layers.iter().position(is_shared) {
            return refused(format!("{}.{i} has attention to another layer's keys", self.layers_path));
        }
        if let Some(inputs) = &self.extras.per_layer_inputs {
            return refused(format!("{} gives every layer a part of the embedding", inputs.table.path));
        }
        let own = stage.range(n_layers);
        let others = (0..n_layers).filter(|i| !own.contains(i)).map(|i| format!("{}.{i}", self.layers_path));
        let elsewhere = &mut self.extras.held_elsewhere;
        elsewhere.extend(others);
        let (is_first, is_last) = (stage.rank == 0, stage.rank + 1 == n_ranks);
        let is_tied = matches!(self.head, HeadSpec::Tied(_));
        let has_embed = is_first || is_last && is_tied;
        if !has_embed {
            elsewhere.push(self.embed.path.clone());
        }
        if !is_last {
            elsewhere.push(self.norm.name.clone());
            if let HeadSpec::Own(head) = &self.head {
                elsewhere.push(head.path.clone());
            }
        }
        self.layers.drain(own.end..);
        self.layers.drain(..own.start);
        Ok(self)
    }
}

/// Cuts blocks to the size of a rank's part.
struct Cut<'a> {
    shard: Shard,
    reader: &'a TensorReader<'a>,
    held_elsewhere: Vec<String>,
}

impl Cut<'_> {
    fn attention(&mut self, a: &mut GqaSpec) -> Fits<()> {
        let Shard { rank, n_ranks } = self.shard;
        if let Some(norm) = a.k_norm.as_ref().filter(|norm| norm.len != a.head_dim)
            && !a.n_kv_heads.is_multiple_of(n_ranks)
        {
            return Err(format!("{} is a norm over all {} heads", norm.name, a.n_kv_heads));
        }
        self.output(&mut a.o, a.n_heads)?;
        // Ranks that are more than the heads of keys and values share these.
        let of_kv = if a.n_kv_heads.is_multiple_of(n_ranks) {
            self.shard
        } else if n_ranks.is_multiple_of(a.n_kv_heads) {
            Shard { rank: rank * a.n_kv_heads / n_ranks, n_ranks: a.n_kv_heads }
        } else {
            return Err(format!("{} gives {} heads", a.k.matrix.path, a.n_kv_heads));
        };
        rows(&mut a.q, self.shard);
        [Some(&mut a.k), a.v.as_mut()].into_iter().flatten().for_each(|linear| rows(linear, of_kv));
        a.sinks.iter_mut().for_each(|sinks| values(sinks, self.shard));
        a.n_heads = self.shard.range(a.n_heads).len();
        a.n_kv_heads = of_kv.range(a.n_kv_heads).len();
        Ok(())
    }

    fn latent(&mut self, a: &mut MlaSpec) -> Fits<()> {
        self.output(&mut a.o, a.n_heads)?;
        match &mut a.q {
            QuerySpec::Direct(q) | QuerySpec::LowRank { b: q, .. } => rows(q, self.shard),
        }
        let heads = self.shard.range(a.n_heads);
        a.slice = Some(Slice { start: heads.start, of: a.n_heads });
        a.n_heads = heads.len();
        Ok(())
    }

    /// The projection out of the heads, by columns: as many for each rank.
    fn output(&mut self, o: &mut LinearSpec, n_heads: usize) -> Fits<()> {
        let Shard { rank, n_ranks } = self.shard;
        if rank > 0 {
            // Rank 0 alone adds it to the sum.
            self.held_elsewhere.extend(o.bias.take().map(|bias| bias.name));
        }
        let matrix = &mut o.matrix;
        if !n_heads.is_multiple_of(n_ranks) {
            return Err(format!("{} follows {n_heads} heads", matrix.path));
        }
        let group_size = self.reader.group_size(matrix);
        if !matrix.n_in.is_multiple_of(n_ranks * group_size) {
            return Err(format!("{} has {} groups of columns", matrix.path, matrix.n_in / group_size));
        }
        columns(matrix, self.shard.range(matrix.n_in));
        Ok(())
    }

    fn mixture(&mut self, moe: &mut MoeSpec) -> Fits<()> {
        self.experts(&mut moe.experts)?;
        let Some(shared) = &mut moe.shared else { return Ok(()) };
        self.mlp(shared);
        if shared.gate.n_out == 0 {
            let gate = moe.shared_gate.take();
            let matrices = [&shared.gate, &shared.up, &shared.down].into_iter().chain(&gate);
            self.held_elsewhere.extend(matrices.map(|matrix| matrix.path.clone()));
            moe.shared = None;
        }
        Ok(())
    }

    fn experts(&self, e: &mut ExpertsSpec) -> Fits<()> {
        let n_groups = e.inter / self.reader.group_size_of_experts(e);
        if n_groups.is_multiple_of(self.shard.n_ranks) {
            let part = self.shard.range(e.inter);
            e.split = ExpertSplit::Width(Slice { start: part.start, of: e.inter });
            e.inter = part.len();
        } else if e.n_experts.is_multiple_of(self.shard.n_ranks) {
            let part = self.shard.range(e.n_experts);
            e.split = ExpertSplit::Experts(Slice { start: part.start, of: e.n_experts });
            e.n_experts = part.len();
        } else {
            return Err(format!("{} has {} experts of {n_groups} groups", e.path, e.n_experts));
        }
        Ok(())
    }

    /// Splits the inner width between groups, unevenly where it must be. Returns the number of groups of all ranks: where they
    /// are fewer than the ranks, some have none.
    fn mlp(&self, mlp: &mut MlpSpec) -> usize {
        let (inter, group_size) = (mlp.down.n_in, self.reader.group_size(&mlp.down));
        let n_groups = inter / group_size;
        let groups = self.shard.range(n_groups);
        let part = groups.start * group_size..groups.end * group_size;
        matrix_rows(&mut mlp.gate, part.clone());
        matrix_rows(&mut mlp.up, part.clone());
        columns(&mut mlp.down, part);
        n_groups
    }
}

/// The rows of whole heads, the same number for each rank, and their biases.
fn rows(linear: &mut LinearSpec, shard: Shard) {
    let part = shard.range(linear.matrix.n_out);
    matrix_rows(&mut linear.matrix, part);
    linear.bias.iter_mut().for_each(|bias| values(bias, shard));
}

fn matrix_rows(matrix: &mut MatrixSpec, part: Range<usize>) {
    matrix.split = Split::Rows(Slice { start: part.start, of: matrix.n_out });
    matrix.n_out = part.len();
}

fn columns(matrix: &mut MatrixSpec, part: Range<usize>) {
    matrix.split = Split::Columns(Slice { start: part.start, of: matrix.n_in });
    matrix.n_in = part.len();
}

fn values(vector: &mut VectorSpec, shard: Shard) {
    let part = shard.range(vector.len);
    vector.slice = Some(Slice { start: part.start, of: vector.len });
    vector.len = part.len();
}
