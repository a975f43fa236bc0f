//! A pointer through which the members of a team write to one buffer.

/// A pointer through which members write disjoint elements.
#[derive(Clone, Copy)]
pub(crate) struct SyncPtr(*mut f32);

// SAFETY: the users promise that no element is written by two members, or read by one while another writes it.
unsafe impl Send for SyncPtr {}
// SAFETY: as above.
unsafe impl Sync for SyncPtr {}

impl SyncPtr {
    pub(crate) fn new(values: &mut [f32]) -> Self {
        Self(values.as_mut_ptr())
    }

    /// A pointer to element `from`.
    ///
    /// # Safety
    /// The element exists.
    pub(crate) unsafe fn row(self, from: usize) -> *const f32 {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(from).cast_const() }
    }

    /// # Safety
    /// The elements `from..from + len` exist and no member writes them in this phase.
    pub(crate) unsafe fn read<'a>(self, from: usize, len: usize) -> &'a [f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(self.0.add(from), len) }
    }

    /// # Safety
    /// The elements `from..from + len` exist and no other member touches them in this phase.
    pub(crate) unsafe fn slice<'a>(self, from: usize, len: usize) -> &'a mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(from), len) }
    }
}
