//! Where the library is entered from outside: its constructor and the two look-up hooks.
//!
//! The hooks end in a jump to the real function, with arguments and return address as they
//! came: the C library answers "the next one" by its caller's place, and a call from here
//! would be that. The constructor finds the real functions and does nothing else.
#![expect(unsafe_code, reason = "is entered from outside")]

use core::arch::naked_asm;

use crate::{libc, lookup};

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: unsafe extern "C" fn() = construct;

unsafe extern "C" fn construct() {
    libc::find_real();
}

/// Stands in for `dlsym`, in each of its versions.
///
/// # Safety
///
/// As `dlsym`.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dlsym() {
    naked_asm!(
        "endbr64",
        "push rdi",
        "push rsi",
        "sub rsp, 8",
        "call {answer}",
        "add rsp, 8",
        "pop rsi",
        "pop rdi",
        "test rax, rax",
        "jnz 2f",
        "mov rax, qword ptr [rip + {real}]",
        "test rax, rax",
        "jz 2f",
        "jmp rax",
        "2: ret",
        answer = sym lookup::answer,
        real = sym libc::REAL_DLSYM,
    );
}

/// Stands in for `dlvsym`. The driver's library has no versions: a name is answered the same.
///
/// # Safety
///
/// As `dlvsym`.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dlvsym() {
    naked_asm!(
        "endbr64",
        "push rdi",
        "push rsi",
        "push rdx",
        "call {answer}",
        "pop rdx",
        "pop rsi",
        "pop rdi",
        "test rax, rax",
        "jnz 2f",
        "mov rax, qword ptr [rip + {real}]",
        "test rax, rax",
        "jz 2f",
        "jmp rax",
        "2: ret",
        answer = sym lookup::answer,
        real = sym libc::REAL_DLVSYM,
    );
}

/// As on the other processor.
///
/// # Safety
///
/// As `dlsym`.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dlsym() {
    naked_asm!(
        "bti c",
        "stp x29, x30, [sp, #-32]!",
        "stp x0, x1, [sp, #16]",
        "bl {answer}",
        "mov x9, x0",
        "ldp x0, x1, [sp, #16]",
        "ldp x29, x30, [sp], #32",
        "cbnz x9, 2f",
        "adrp x10, {real}",
        "ldr x9, [x10, :lo12:{real}]",
        "cbz x9, 2f",
        "br x9",
        "2: mov x0, x9",
        "ret",
        answer = sym lookup::answer,
        real = sym libc::REAL_DLSYM,
    );
}

/// As on the other processor.
///
/// # Safety
///
/// As `dlvsym`.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dlvsym() {
    naked_asm!(
        "bti c",
        "stp x29, x30, [sp, #-48]!",
        "stp x0, x1, [sp, #16]",
        "str x2, [sp, #32]",
        "bl {answer}",
        "mov x9, x0",
        "ldr x2, [sp, #32]",
        "ldp x0, x1, [sp, #16]",
        "ldp x29, x30, [sp], #48",
        "cbnz x9, 2f",
        "adrp x10, {real}",
        "ldr x9, [x10, :lo12:{real}]",
        "cbz x9, 2f",
        "br x9",
        "2: mov x0, x9",
        "ret",
        answer = sym lookup::answer,
        real = sym libc::REAL_DLVSYM,
    );
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing here panics on what comes from outside; a defect ends the process at once,
    // as the driver's own defects do.
    loop {
        // SAFETY: raises a signal that ends the process.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            core::arch::asm!("ud2");
            #[cfg(target_arch = "aarch64")]
            core::arch::asm!("udf #0");
        }
    }
}
