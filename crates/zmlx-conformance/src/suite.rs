//! What a backend declares about itself, and the list of tests.

use zmlx_core::{Backend, CacheKind, CacheSpec, KvFormat, Logits, Span, WeightFormat};

use crate::cases::Grid;
use crate::inputs::TestWeight;

/// A backend in one configuration, with what it promises beyond the trait.
pub struct Instance<B> {
    /// The name in messages.
    pub name: String,
    /// The backend.
    pub backend: B,
    /// The sizes that it runs.
    pub grid: Grid,
    /// Batches of fewer rows than this give each row the same bits as the row alone.
    pub same_path_below: usize,
    /// The error of a product of so many tokens with weights of that format, as a multiple of the error with f32
    /// activations and f32 sums.
    pub product_error: fn(WeightFormat, usize) -> f64,
    /// The error of attention, as a multiple of the error with a cache in f32.
    pub attention_error: f64,
    /// The difference between results if a prompt is split differently, as a multiple of the effect of another order of
    /// sums.
    pub chunk_error: f64,
    /// The error of an exponential, as a multiple of 2 units in the last place.
    pub exponential_error: f64,
    /// The error of a rope angle, in radians per position. The trait allows the error of f32 angles, `2^-23`.
    pub angle_error: f64,
}

impl<B> Instance<B> {
    /// True if it runs all sizes.
    pub fn is_full(&self) -> bool {
        self.grid == Grid::Full
    }
}

/// The instances that run a case: those of the full grid, and the others if the thinned grid has it. A case that nobody runs is
/// skipped before its results are computed.
pub fn running<B>(instances: &[Instance<B>], is_in_thinned: bool) -> Vec<&Instance<B>> {
    instances.iter().filter(|i| is_in_thinned || i.is_full()).collect()
}

/// Moves host values to a backend and back, for calls that must succeed.
pub trait Host: Backend {
    /// A tensor with these values.
    fn put(&self, values: &[f32], shape: &[usize]) -> Self::Tensor {
        self.tensor(values, shape).unwrap()
    }

    /// The values of a tensor.
    fn get(&self, x: &Self::Tensor) -> Vec<f32> {
        let mut out = vec![f32::NAN; 3]; // replaced, not appended to
        self.read(x, &mut out).unwrap();
        out
    }

    /// Indices with these values.
    fn put_indices(&self, values: &[u32], shape: &[usize]) -> Self::Indices {
        self.indices(values, shape).unwrap()
    }

    /// The values of indices.
    fn get_indices(&self, x: &Self::Indices) -> Vec<u32> {
        let mut out = vec![u32::MAX; 3];
        self.read_indices(x, &mut out).unwrap();
        out
    }

    /// A step of these spans.
    fn spans(&self, spans: &[Span]) -> Self::Step {
        self.step(spans).unwrap()
    }

    /// An empty cache in the backend's own format.
    fn native(&self, kind: CacheKind) -> Self::Cache {
        self.cache(&native(kind)).unwrap()
    }

    /// The weight on the device.
    fn load(&self, weight: &TestWeight) -> Self::Weight {
        self.upload(weight.host.clone()).unwrap()
    }

    /// A dense f32 vector as a weight.
    fn load_vector(&self, values: &[f32]) -> Self::Weight {
        self.upload(zmlx_core::HostWeight::from_f32(values, 1, values.len()).unwrap()).unwrap()
    }
}

impl<B: Backend> Host for B {}

/// A span whose last token's logits are wanted.
pub fn span(slot: usize, start: usize, n_tokens: usize) -> Span {
    Span { slot, start, n_tokens, logits: Logits::Last }
}

/// A cache of that kind in the backend's own format.
pub fn native(kind: CacheKind) -> CacheSpec {
    CacheSpec { kind, format: KvFormat::Native }
}

/// Makes a module of tests for one backend. Each test runs on all instances that the function `$instances` returns,
/// which is a `fn() -> Vec<Instance<B>>`. Its name is resolved inside the new module, so begin the path with `crate::`.
#[macro_export]
macro_rules! conformance {
    ($backend:ident, $instances:path) => {
        mod $backend {
            $crate::conformance! { @ $instances;
                linear { all_formats, around_limits, real_widths, dense_of_odd_widths, leading_dimensions, one_matrix_per_head }
                gather {
                    held_experts, per_token_and_per_slot, same_expert_twice, unchosen_experts_are_not_read,
                    one_expert_takes_all_tokens
                }
                fused {
                    gather_qmm_swiglu, gather_qmm_swiglu_of_two_formats, qmm_swiglu, gather_qmm_combine,
                    experts_and_a_shared_mlp, add_rms_norm, rms_norm_gated
                }
                activations {
                    elementwise, soft_cap, experts_with_biases, experts_without_biases, dense, combine_with_biases,
                    chosen_values
                }
                embed_concat {
                    embed, concat_rows_of_one_format, concat_rows_of_different_formats, concat_rows_of_banks,
                    concat_rows_in_fused_ops, embed_from_a_concatenation
                }
                rope_norm {
                    rms_norm, rope, rope_far_out, rope_of_other_frequencies, rope_of_several_spans, norm_rope
                }
                attention {
                    grouped_heads, long_prompts, chunks_equal_one_go, slots_in_one_batch_equal_each_alone,
                    truncate_and_continue, past_the_growth_step, latent, latent_with_projections,
                    norm_rope_mla
                }
                windows {
                    tokens_see_their_window, long_sequences, sinks, shared, what_is_gone_cannot_be_had_again,
                    a_window_that_is_not_the_cache_s
                }
                recurrent {
                    causal_conv, gated_delta, large_states, chunks_equal_one_go, snapshots_grow_apart,
                    failed_steps_leave_no_trace, bytes_count_what_is_shared_once, what_does_not_fit, extreme_gates
                }
                factors { products }
                formats { eight_bits, four_bits, bytes, group_sizes }
                caches {
                    forks_grow_apart, a_fork_outlives_its_origin, failed_steps_leave_no_trace,
                    bytes_count_what_is_shared_once, released_memory_is_used_again, any_slot
                }
                elementwise {
                    softmax, sigmoid, swiglu, gates, arithmetic, weighted_sum, moves_are_exact, large_tensors
                }
                router {
                    top_k, softmax_top_k, noaux_tc, fused_routers_equal_compositions, ties_go_to_the_lower_index,
                    groups
                }
                sampling {
                    greedy_takes_the_first_of_the_largest, recent_tokens_become_less_likely, filters_keep,
                    ties_at_the_end_of_a_filter, draws_follow_the_distribution, the_seed_decides,
                    choices_are_assessed, rows_do_not_depend_on_each_other, chosen_tokens_are_joined,
                    lists_are_joined, bad_arguments_are_errors
                }
                invariance { linear, experts, rows_of_one_expert }
                tiles { many_tokens, experts_of_many_tokens, heads_of_many_tokens, very_many_rows }
                extremes {
                    large_activations, zero_rows, zero_scales, silu_under_and_overflow, attention_of_large_scores,
                    router_of_large_logits, no_tokens
                }
                errors { tensors, products, experts, rows, routers, steps, attention, latent_attention, caches }
                buffers { ends_at_a_page_end, experts_end_at_a_page_end }
            }
        }
    };
    (@ $instances:path; $($family:ident { $($test:ident),* $(,)? })*) => {$(
        mod $family {$(
            #[test]
            fn $test() {
                $crate::$family::$test(&$instances());
            }
        )*}
    )*};
}
