//! The memory that a member of the team needs for products.

use super::dots::{MAX_DOTS, ROWS, scales_len};
use super::layout::PaddedRows;
use super::shares::BLOCK_ROWS;
use super::tiles::{MAX_TILE_ROWS, TileScratch};
use super::weight::WeightPart;
use crate::pool::Aligned;

/// The working memory of one member.
pub(crate) struct ProductScratch {
    pub(super) packed: Aligned<f32>,
    pub(super) tiles: [TileScratch; 2],
    /// The results of a tile for each weight, one row of activations after the other.
    pub(super) tile_results: [Aligned<f32>; 2],
    /// The scales of some rows.
    pub(super) scales: Aligned<f32>,
    pub(super) padded: PaddedRows,
    pub(super) results: Box<[[[f32; BLOCK_ROWS]; MAX_DOTS]; 2]>,
    pub(super) xs: Vec<*const f32>,
    /// Activations that only this member multiplies.
    pub(super) prepared: Aligned<f32>,
}

impl Default for ProductScratch {
    fn default() -> Self {
        Self {
            packed: Aligned::default(),
            tiles: Default::default(),
            tile_results: Default::default(),
            scales: Aligned::default(),
            padded: PaddedRows::default(),
            results: Box::new([[[0.0; BLOCK_ROWS]; MAX_DOTS]; 2]),
            xs: Vec::new(),
            prepared: Aligned::default(),
        }
    }
}

impl ProductScratch {
    /// Makes room for dots with the rows of a part, and for tiles. Every member does this, because the members that
    /// take part change from call to call.
    pub(super) fn reserve(&mut self, part: &WeightPart, has_tiles: bool) {
        let layout = &part.kernels.layout;
        if self.scales.len() < scales_len(layout) {
            self.scales.resize(scales_len(layout), 0.0);
        }
        self.padded.reserve(layout, part.row_bytes, if has_tiles { MAX_TILE_ROWS } else { ROWS });
    }
}

// SAFETY: `xs` holds pointers only while one product is computed; between uses they are never read.
unsafe impl Send for ProductScratch {}
