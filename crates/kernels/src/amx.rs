//! Tile registers: whether a process may use them, and their shape while a kernel does.

use std::arch::asm;
use std::sync::OnceLock;

/// Whether processor and system have 8-bit and bfloat16 tiles; asks the system for them once.
pub fn available() -> bool {
    static ALLOWED: OnceLock<bool> = OnceLock::new();
    *ALLOWED.get_or_init(|| present() && permitted())
}

/// Leaf 7 names the instructions, leaf 1 whether the system saves extended states, and XCR0
/// whether it saves tiles.
fn present() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & (1 << 27) == 0 {
        return false;
    }
    const BF16_TILE_INT8: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    if __cpuid_count(7, 0).edx & BF16_TILE_INT8 != BF16_TILE_INT8 {
        return false;
    }
    let low: u32;
    // SAFETY: reads XCR0, which is there by bit 27 of leaf 1.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") _, options(nomem, nostack));
    }
    const TILE_CONFIG_AND_DATA: u32 = 1 << 17 | 1 << 18;
    low & TILE_CONFIG_AND_DATA == TILE_CONFIG_AND_DATA
}

/// Linux gives a process tile data only when it asks.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: changes nothing but what this process may use.
    unsafe {
        libc::syscall(
            libc::SYS_arch_prctl,
            ARCH_REQ_XCOMP_PERM,
            XFEATURE_XTILEDATA,
        ) == 0
    }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// Rows and bytes of a row of the tiles: 0 to 3 for sums of 64 bytes a row, 4 and 5 for left
/// operands, 6 and 7 for right ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows of tiles 0 to 3.
    pub sums: u8,
    /// Rows and bytes of a row of tiles 4 and 5.
    pub left: (u8, u16),
    /// The same of tiles 6 and 7.
    pub right: (u8, u16),
}

/// While it lives, this thread's tiles have a shape.
pub struct Entered(());

/// Gives this thread's tiles a shape; they are 0 then.
///
/// # Panics
/// When there are no tiles, or a shape is larger than 16 rows of 64 bytes.
pub fn enter(shape: &Shape) -> Entered {
    assert!(available());
    #[repr(C, align(64))]
    struct Config([u8; 64]);
    let mut config = Config([0; 64]);
    config.0[0] = 1; // the palette of eight tiles of 1 KiB
    let tiles = [(shape.sums, 64); 4]
        .into_iter()
        .chain([shape.left; 2])
        .chain([shape.right; 2]);
    for (tile, (rows, bytes)) in tiles.enumerate() {
        assert!(rows <= 16 && bytes <= 64);
        config.0[16 + 2 * tile..][..2].copy_from_slice(&bytes.to_le_bytes());
        config.0[48 + tile] = rows;
    }
    // SAFETY: the instruction is there, and reads 64 bytes that describe tiles within bounds.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, readonly)) };
    Entered(())
}

impl Drop for Entered {
    fn drop(&mut self) {
        // SAFETY: tiles are there, or this value would not be. Released, they cost nothing when
        // the system switches threads.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}
