// The order of activations and codes in matrix products, in units of 64 columns. A lane of quarter q has of each unit what
// fits its codes: two runs of 8 columns, each of which is its part of two steps of 16.

#define UNIT 64
// Of the 8 runs of a unit, run j is taken by quarter `quarter_of(j)`, in steps `2·pair_of(j)` and the next; so that no step
// mixes groups of weights.
__device__ __forceinline__ u32 quarter_of(u32 j) { return GROUP == 32 ? j % 4 : j / 2; }
__device__ __forceinline__ u32 pair_of(u32 j) { return GROUP == 32 ? j / 4 : j % 2; }

// Weights that share a scale within a unit.
#define SPAN (GROUP == 32 ? 32 : UNIT)
#define N_SPANS (UNIT / SPAN)
