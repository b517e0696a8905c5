//! Where the library is entered from outside: its constructor and the two look-up hooks, or in
//! the drop-in the jumps to the driver's functions.
//!
//! The hooks end in a jump to the real function, with arguments and return address as they
//! came: the C library answers "the next one" by its caller's place, and a call from here
//! would be that. The constructor finds the real functions and does nothing else.
#![expect(unsafe_code, reason = "is entered from outside")]

use core::arch::naked_asm;

use crate::libc;
#[cfg(not(accelpool_drop_in))]
use crate::lookup;

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: unsafe extern "C" fn() = construct;

unsafe extern "C" fn construct() {
    libc::find_real();
}

/// A look-up hook: asks `lookup::answer`, and jumps to the real function if that has none. The
/// third argument is `dlvsym`'s, and nobody's in `dlsym`.
#[cfg(not(accelpool_drop_in))]
macro_rules! hook {
    ($(#[$meta:meta])* $name:ident, $real:ident) => {
        $(#[$meta])*
        #[cfg(target_arch = "x86_64")]
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name() {
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
                real = sym libc::$real,
            );
        }

        $(#[$meta])*
        #[cfg(target_arch = "aarch64")]
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name() {
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
                real = sym libc::$real,
            );
        }
    };
}

#[cfg(not(accelpool_drop_in))]
hook! {
    /// Stands in for `dlsym`, in each of its versions.
    ///
    /// # Safety
    ///
    /// As `dlsym`.
    dlsym, REAL_DLSYM
}

#[cfg(not(accelpool_drop_in))]
hook! {
    /// Stands in for `dlvsym`. The driver's library has no versions: a name is answered the same.
    ///
    /// # Safety
    ///
    /// As `dlvsym`.
    dlvsym, REAL_DLVSYM
}

/// What the drop-in exports for a function that it does not stand in for: a jump to the
/// driver's own, with all arguments as they came, whatever they are.
#[cfg(accelpool_drop_in)]
macro_rules! jump {
    ($name:ident $index:literal) => {
        #[cfg(target_arch = "x86_64")]
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $name() {
            core::arch::naked_asm!(
                "endbr64",
                "mov rax, qword ptr [rip + {real} + 8*{index}]",
                "test rax, rax",
                "jz 2f",
                "jmp rax",
                "2: mov eax, {index}",
                "jmp {find}",
                real = sym crate::surface::REAL,
                index = const $index,
                find = sym crate::entry::find_and_jump,
            );
        }

        #[cfg(target_arch = "aarch64")]
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $name() {
            core::arch::naked_asm!(
                "bti c",
                "adrp x16, {real} + 8*{index}",
                "ldr x16, [x16, :lo12:{real} + 8*{index}]",
                "cbz x16, 2f",
                "br x16",
                "2: mov w17, #{index}",
                "b {find}",
                real = sym crate::surface::REAL,
                index = const $index,
                find = sym crate::entry::find_and_jump,
            );
        }
    };
}
#[cfg(accelpool_drop_in)]
pub(crate) use jump;

/// Finds the driver's function of the row in `eax` and jumps there; every register that can
/// carry an argument is kept.
#[cfg(all(accelpool_drop_in, target_arch = "x86_64"))]
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn find_and_jump() {
    naked_asm!(
        "push rdi",
        "push rsi",
        "push rdx",
        "push rcx",
        "push r8",
        "push r9",
        "sub rsp, 136",
        "movups [rsp], xmm0",
        "movups [rsp + 16], xmm1",
        "movups [rsp + 32], xmm2",
        "movups [rsp + 48], xmm3",
        "movups [rsp + 64], xmm4",
        "movups [rsp + 80], xmm5",
        "movups [rsp + 96], xmm6",
        "movups [rsp + 112], xmm7",
        "mov edi, eax",
        "call {to}",
        "movups xmm0, [rsp]",
        "movups xmm1, [rsp + 16]",
        "movups xmm2, [rsp + 32]",
        "movups xmm3, [rsp + 48]",
        "movups xmm4, [rsp + 64]",
        "movups xmm5, [rsp + 80]",
        "movups xmm6, [rsp + 96]",
        "movups xmm7, [rsp + 112]",
        "add rsp, 136",
        "pop r9",
        "pop r8",
        "pop rcx",
        "pop rdx",
        "pop rsi",
        "pop rdi",
        "jmp rax",
        to = sym crate::surface::jump_to,
    );
}

/// As on the other processor; the row is in `w17`.
#[cfg(all(accelpool_drop_in, target_arch = "aarch64"))]
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn find_and_jump() {
    naked_asm!(
        "stp x29, x30, [sp, #-224]!",
        "stp x0, x1, [sp, #16]",
        "stp x2, x3, [sp, #32]",
        "stp x4, x5, [sp, #48]",
        "stp x6, x7, [sp, #64]",
        "str x8, [sp, #80]",
        "stp q0, q1, [sp, #96]",
        "stp q2, q3, [sp, #128]",
        "stp q4, q5, [sp, #160]",
        "stp q6, q7, [sp, #192]",
        "mov w0, w17",
        "bl {to}",
        "mov x16, x0",
        "ldp q6, q7, [sp, #192]",
        "ldp q4, q5, [sp, #160]",
        "ldp q2, q3, [sp, #128]",
        "ldp q0, q1, [sp, #96]",
        "ldr x8, [sp, #80]",
        "ldp x6, x7, [sp, #64]",
        "ldp x4, x5, [sp, #48]",
        "ldp x2, x3, [sp, #32]",
        "ldp x0, x1, [sp, #16]",
        "ldp x29, x30, [sp], #224",
        "br x16",
        to = sym crate::surface::jump_to,
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
