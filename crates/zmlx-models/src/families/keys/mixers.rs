//! Mixers and mixtures under the names that most families give them.

use zmlx_kernels::{NoauxTc, Rope, SoftmaxTopK};

use crate::architecture::{
    ExpertsSpec, GqaSpec, LinearSpec, MatrixSpec, MlaSpec, MlpSpec, MoeSpec, QuerySpec, RouterSpec, Storage,
    VectorSpec,
};

/// Grouped-query attention, without window or sinks.
pub(in crate::families) struct Grouped {
    pub(in crate::families) n_heads: usize,
    pub(in crate::families) n_kv_heads: usize,
    pub(in crate::families) head_dim: usize,
    pub(in crate::families) hidden: usize,
    /// Which projections have a bias.
    pub(in crate::families) biases: Biases,
    /// Whether queries and keys are normed.
    pub(in crate::families) norms: HeadNorms,
    /// The epsilon of these norms.
    pub(in crate::families) eps: f32,
    pub(in crate::families) rope: Rope,
}

/// Which projections of attention have a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::families) enum Biases {
    None,
    /// Of queries, keys and values.
    Qkv,
    All,
}

/// How queries and keys are normed before rope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::families) enum HeadNorms {
    None,
    /// Each head by itself.
    Each,
    /// All heads at once.
    All,
}

impl Grouped {
    /// The module at `path`.
    pub(in crate::families) fn at(&self, path: &str) -> GqaSpec {
        let Self { n_heads, n_kv_heads, head_dim, hidden, biases, norms, .. } = *self;
        let (q_width, kv_width) = (n_heads * head_dim, n_kv_heads * head_dim);
        let linear = |name: &str, is_biased: bool, n_out, n_in| {
            let of = if is_biased { LinearSpec::biased } else { LinearSpec::new };
            of(format!("{path}.{name}"), n_out, n_in)
        };
        let (qkv, o) = (biases != Biases::None, biases == Biases::All);
        let norm = |name: &str, width| {
            let len = match norms {
                HeadNorms::None => return None,
                HeadNorms::Each => head_dim,
                HeadNorms::All => width,
            };
            Some(VectorSpec::new(format!("{path}.{name}.weight"), len))
        };
        GqaSpec {
            n_heads,
            n_kv_heads,
            head_dim,
            q: linear("q_proj", qkv, q_width, hidden),
            output_gate: false,
            k: linear("k_proj", qkv, kv_width, hidden),
            v: Some(linear("v_proj", qkv, kv_width, hidden)),
            o: linear("o_proj", o, hidden, q_width),
            q_norm: norm("q_norm", q_width),
            k_norm: norm("k_norm", kv_width),
            norms_values: false,
            eps: self.eps,
            rope: self.rope.clone(),
            scale: (head_dim as f32).sqrt().recip(),
            window: None,
            sinks: None,
        }
    }
}

/// Latent attention.
pub(in crate::families) struct Latent {
    pub(in crate::families) hidden: usize,
    pub(in crate::families) n_heads: usize,
    /// `None`: queries come from one plain `q_proj`.
    pub(in crate::families) q_rank: Option<usize>,
    pub(in crate::families) rank: usize,
    pub(in crate::families) nope_dim: usize,
    pub(in crate::families) rope_dim: usize,
    pub(in crate::families) v_dim: usize,
    /// Whether the projections into the bottlenecks and the last one have biases.
    pub(in crate::families) is_biased: bool,
    /// The epsilon of the norms of queries and latents.
    pub(in crate::families) eps: f32,
    pub(in crate::families) rope: Rope,
    /// What multiplies the scores.
    pub(in crate::families) scale: f32,
}

impl Latent {
    /// The module at `path`.
    pub(in crate::families) fn at(&self, path: &str) -> MlaSpec {
        let Self { hidden, n_heads, rank, nope_dim, rope_dim, v_dim, .. } = *self;
        let at = |name: &str| format!("{path}.{name}");
        let linear = |name: &str, n_out, n_in| LinearSpec::new(at(name), n_out, n_in);
        let biased = |name: &str, n_out, n_in| {
            let of = if self.is_biased { LinearSpec::biased } else { LinearSpec::new };
            of(at(name), n_out, n_in)
        };
        let norm = |name: &str, len| VectorSpec::new(format!("{path}.{name}.weight"), len);
        let q_width = n_heads * (nope_dim + rope_dim);
        MlaSpec {
            path: path.to_owned(),
            n_heads,
            slice: None,
            nope_dim,
            rope_dim,
            v_dim,
            rank,
            q: match self.q_rank {
                None => QuerySpec::Direct(linear("q_proj", q_width, hidden)),
                Some(q_rank) => QuerySpec::LowRank {
                    a: biased("q_a_proj", q_rank, hidden),
                    norm: norm("q_a_layernorm", q_rank),
                    b: linear("q_b_proj", q_width, q_rank),
                },
            },
            kv_a: biased("kv_a_proj_with_mqa", rank + rope_dim, hidden),
            kv_norm: norm("kv_a_layernorm", rank),
            o: biased("o_proj", hidden, n_heads * v_dim),
            eps: self.eps,
            rope: self.rope.clone(),
            scale: self.scale,
        }
    }
}

/// A mixture with a softmax router and no shared experts.
pub(in crate::families) struct SoftmaxMoe {
    pub(in crate::families) n_experts: usize,
    pub(in crate::families) hidden: usize,
    /// Width of an expert.
    pub(in crate::families) inter: usize,
    /// How converters store the router.
    pub(in crate::families) router: Storage,
    pub(in crate::families) settings: SoftmaxTopK,
}

impl SoftmaxMoe {
    /// The module at `path`.
    pub(in crate::families) fn at(&self, path: String) -> MoeSpec {
        let Self { n_experts, hidden, inter, router, settings } = *self;
        let gate = MatrixSpec::new(format!("{path}.gate"), n_experts, hidden).stored(router);
        MoeSpec {
            router: RouterSpec::SoftmaxTopK { gate, settings },
            experts: ExpertsSpec::swiglu(path, n_experts, [inter, hidden]),
            shared: None,
            shared_gate: None,
        }
    }
}

/// A mixture whose router has no auxiliary loss, with shared experts.
pub(in crate::families) struct NoauxMoe {
    pub(in crate::families) n_experts: usize,
    pub(in crate::families) hidden: usize,
    /// Width of an expert.
    pub(in crate::families) inter: usize,
    /// Width of all shared experts together; 0 for none.
    pub(in crate::families) shared_inter: usize,
    pub(in crate::families) settings: NoauxTc,
}

impl NoauxMoe {
    /// The module at `path`.
    pub(in crate::families) fn at(&self, path: String) -> MoeSpec {
        let Self { n_experts, hidden, inter, shared_inter, settings } = *self;
        let gate = format!("{path}.gate");
        MoeSpec {
            router: RouterSpec::NoauxTc {
                bias: Some(VectorSpec::new(format!("{gate}.e_score_correction_bias"), n_experts)),
                gate: MatrixSpec::new(gate, n_experts, hidden).stored(Storage::Dense),
                settings,
            },
            shared_gate: None,
            shared: (shared_inter > 0)
                .then(|| MlpSpec::swiglu(&format!("{path}.shared_experts"), shared_inter, hidden)),
            experts: ExpertsSpec::swiglu(path, n_experts, [inter, hidden]),
        }
    }
}
