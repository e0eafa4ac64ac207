//! Single-precision matrix products on strided slices, by the `gemm` crate.

/// A read-only matrix of `rows` x `columns` within a slice.
#[derive(Clone, Copy)]
pub(crate) struct MatrixView<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> MatrixView<'a> {
    /// A row-major matrix.
    pub(crate) fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::strided(data, rows, columns, columns)
    }

    /// `columns` consecutive values of each row of a wider row-major matrix; `data` begins at the first of them.
    pub(crate) fn strided(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(rows == 0 || columns == 0 || data.len() >= (rows - 1) * row_stride + columns);
        Self {
            data,
            rows,
            columns,
            row_stride,
            column_stride: 1,
        }
    }

    /// Number of columns.
    pub(crate) fn columns(self) -> usize {
        self.columns
    }

    /// The transpose, without moving a value.
    pub(crate) fn t(self) -> Self {
        Self {
            data: self.data,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }
}

/// `out[:, ..] = keep * out + scale * a · b`, where `out` has rows of `out_stride` values and begins at its first column.
/// `keep` is 0 or 1.
pub(crate) fn gemm(out: &mut [f32], out_stride: usize, keep: bool, scale: f32, a: MatrixView<'_>, b: MatrixView<'_>) {
    assert_eq!(a.columns, b.rows, "inner sizes differ");
    let (m, n) = (a.rows, b.columns);
    if m == 0 || n == 0 {
        return;
    }
    assert!(out.len() >= (m - 1) * out_stride + n);
    // Below some 200,000 multiplications handing work to other threads costs more than it saves.
    let parallelism = if m * n * a.columns < 200_000 {
        gemm::Parallelism::None
    } else {
        gemm::Parallelism::Rayon(rayon::current_num_threads())
    };
    // SAFETY: the assertions above and in `MatrixView` bound every index by the slices' lengths; `out` is borrowed
    // mutably and so overlaps neither input.
    unsafe {
        gemm::gemm(
            m,
            n,
            a.columns,
            out.as_mut_ptr(),
            1,
            out_stride as isize,
            keep,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}
