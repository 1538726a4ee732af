//! Stands in for `libz-ng-sys`: the part of its interface that flate2 uses, answered by zlib-rs.
//!
//! Pingora asks for flate2 with its `zlib-ng` feature, whose bindings are built by cmake. rrlb compresses nothing, so
//! all that matters is that it builds with a C compiler only. Gone when Pingora lets its users choose the backend.

#![allow(non_camel_case_types, non_snake_case, missing_docs)]
#![allow(clippy::missing_safety_doc)] // the contract of every function is zlib's own

use core::ffi::{c_char, c_int, c_uint, c_void};

pub use libz_rs_sys::{
    Bytef, Z_BLOCK, Z_BUF_ERROR, Z_DATA_ERROR, Z_DEFAULT_STRATEGY, Z_DEFLATED, Z_FINISH, Z_FULL_FLUSH, Z_MEM_ERROR,
    Z_NEED_DICT, Z_NO_FLUSH, Z_OK, Z_PARTIAL_FLUSH, Z_STREAM_END, Z_STREAM_ERROR, Z_SYNC_FLUSH, internal_state, uInt,
    uLong, voidpf, zlibVersion,
};

pub type alloc_func = unsafe extern "C" fn(voidpf, uInt, uInt) -> voidpf;
pub type free_func = unsafe extern "C" fn(voidpf, voidpf);

/// zlib's stream with allocation functions that are never null, as libz-ng-sys declares it.
#[repr(C)]
pub struct z_stream {
    pub next_in: *mut Bytef,
    pub avail_in: uInt,
    pub total_in: uLong,
    pub next_out: *mut Bytef,
    pub avail_out: uInt,
    pub total_out: uLong,
    pub msg: *mut c_char,
    pub state: *mut internal_state,
    pub zalloc: alloc_func,
    pub zfree: free_func,
    pub opaque: *mut c_void,
    pub data_type: c_int,
    pub adler: uLong,
    pub reserved: uLong,
}
pub type z_streamp = *mut z_stream;

const _: () = assert!(size_of::<z_stream>() == size_of::<libz_rs_sys::z_stream>());
const _: () = assert!(align_of::<z_stream>() == align_of::<libz_rs_sys::z_stream>());

macro_rules! forward {
    ($($name:ident($($arg:ident: $kind:ty),*);)*) => {$(
        pub unsafe extern "C" fn $name(stream: z_streamp $(, $arg: $kind)*) -> c_int {
            // SAFETY: both structures have the same fields in the same order (`Option` of a function has the
            // function's layout), and the caller keeps zlib's contract for this function.
            unsafe { libz_rs_sys::$name(stream.cast::<libz_rs_sys::z_stream>() $(, $arg)*) }
        }
    )*};
}

forward! {
    deflate(flush: c_int);
    deflateEnd();
    deflateInit2_(level: c_int, method: c_int, bits: c_int, memory: c_int, strategy: c_int, version: *const c_char, size: c_int);
    deflateParams(level: c_int, strategy: c_int);
    deflateReset();
    deflateSetDictionary(dictionary: *const Bytef, length: c_uint);
    inflate(flush: c_int);
    inflateEnd();
    inflateInit2_(bits: c_int, version: *const c_char, size: c_int);
    inflateReset2(bits: c_int);
    inflateSetDictionary(dictionary: *const Bytef, length: c_uint);
}
