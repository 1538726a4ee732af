//! mimalloc as the process's allocator: Pingora allocates some eighty times for a request.
//!
//! The `mimalloc` crate asks for every block by `mi_malloc_aligned`, whose way is longer than `mi_malloc`'s. mimalloc
//! aligns every block by its size up to 16 bytes (`MI_MAX_ALIGN_SIZE`), which is all that most types need.
//!
//! Its memory is made of small pages, see [`without_huge_pages`].

use std::alloc::{GlobalAlloc, Layout};

use libmimalloc_sys as mi;

/// The alignment that blocks of at least this size have without being asked.
const NATURAL: usize = 16;

/// A block up to this size is never refused: without the memory for it the process ends, as it does after any refused
/// allocation. That a `Box` cannot fail lets the compiler build Pingora's 14 KB future of a request in its place; it
/// builds it on the stack and copies it where a failure might unwind. Greater blocks are refused with null, for those
/// who ask whether they can have one.
const ORDINARY: usize = 1 << 20;

pub struct Allocator;

/// No huge pages in this process, nor in a successor that it starts. Where they are allowed, the kernel goes through the
/// process's memory in the background and makes 2 MiB of each place where a few KiB are in use: what was resident grew
/// on, to many times of what was allocated. mimalloc would ask for them and is built not to (`no_thp`); this
/// is for systems that make them unasked.
pub fn without_huge_pages() {
    // SAFETY: a flag of the process; nothing is read or written. Before Linux 3.15 it is refused, which changes nothing.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
}

fn is_natural(layout: Layout) -> bool {
    layout.align() <= 8 || (layout.align() <= NATURAL && layout.size() >= NATURAL)
}

// SAFETY: every function hands its arguments to the one of mimalloc with the same contract; a block is naturally
// aligned where `is_natural` says so (mimalloc's smallest block has 8 bytes and 8-byte alignment), and all kinds of
// blocks are freed alike.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let (size, align) = (layout.size(), layout.align());
        // SAFETY: see above.
        let block =
            unsafe { if is_natural(layout) { mi::mi_malloc(size) } else { mi::mi_malloc_aligned(size, align) } };
        if block.is_null() && size <= ORDINARY {
            std::process::abort();
        }
        block.cast()
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let (size, align) = (layout.size(), layout.align());
        // SAFETY: see above.
        unsafe { if is_natural(layout) { mi::mi_zalloc(size) } else { mi::mi_zalloc_aligned(size, align) } }.cast()
    }

    unsafe fn dealloc(&self, block: *mut u8, _: Layout) {
        // SAFETY: see above.
        unsafe { mi::mi_free(block.cast()) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let natural = layout.align() <= 8 || (layout.align() <= NATURAL && size >= NATURAL);
        // SAFETY: see above.
        unsafe {
            if natural {
                mi::mi_realloc(block.cast(), size)
            } else {
                mi::mi_realloc_aligned(block.cast(), size, layout.align())
            }
        }
        .cast()
    }
}
