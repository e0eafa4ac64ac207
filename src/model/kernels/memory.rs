//! Memory shapes that the kernels share.

/// One cache line, aligned, so that a 512-bit load never straddles two.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u32; 16]);

impl Line {
    pub(super) const ZERO: Self = Self([0; 16]);
}

/// A row-major result matrix, shared by tasks that each write their own rectangle of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Out {
    pub(super) start: *mut f32,
    /// Values from one row to the next.
    pub(super) width: usize,
}

// SAFETY: this is only an address; every access goes through an unsafe function whose contract asks for disjoint
// rectangles, and whoever makes an `Out` holds the only reference to the matrix until all tasks have ended.
unsafe impl Send for Out {}
// SAFETY: as above.
unsafe impl Sync for Out {}
