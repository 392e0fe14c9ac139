//! The definition of packed arithmetic, for every machine: plain loops.

use super::layout::{Format, GROUP, SLAB, STRIP};
use super::panel::Panel;
use super::quantized::RowBlock;
use super::{code_of, scale_of};

/// See [`Kernels::unpack`](super::kernels::Kernels).
pub(super) fn unpack<F: Format>(strip: &[u8], signed: bool, panel: &mut Panel) {
    panel.shape::<F>(strip.len() / F::UNIT_BYTES, signed);
    for (u, unit) in strip.chunks_exact(F::UNIT_BYTES).enumerate() {
        for slab in 0..F::UNIT / SLAB {
            let bytes = &unit[slab * F::SLAB_BYTES..][..F::SLAB_BYTES];
            for group in 0..SLAB / 4 {
                let codes = &mut panel.codes[(u * F::UNIT + slab * SLAB) / 4 + group].0;
                for (i, code) in codes.iter_mut().enumerate() {
                    *code = code_of::<F>(bytes, group * 4 + i % 4, i / 4);
                    if signed {
                        *code = code.wrapping_sub(F::ZERO as u8);
                    }
                }
            }
        }
        for block in 0..F::UNIT / F::BLOCK {
            let at = u * (F::UNIT / F::BLOCK) + block;
            for lane in 0..STRIP {
                let (scale, minimum) = scale_of::<F>(unit, block, lane);
                panel.scales[at][lane] = scale;
                if F::MINIMA {
                    panel.minima[at][lane] = minimum;
                }
            }
        }
    }
}

/// See [`Kernels::panel`](super::kernels::Kernels).
pub(super) fn panel(p: &Panel, x: RowBlock<'_>, out: &mut [[f32; STRIP]]) {
    for (row, out) in out.iter_mut().enumerate().take(x.height) {
        *out = [0.0; STRIP];
        // The columns of a scale of activations, as these weights read them.
        let together = (p.block / GROUP).max(1);
        for first in (0..p.groups).step_by(together) {
            let scale = x.scales[first * x.height + row];
            for (lane, out) in out.iter_mut().enumerate() {
                let mut t = 0.0f32;
                for start in (0..together * GROUP).step_by(p.block) {
                    let (mut sum, mut x_sum) = (0, 0);
                    for column in first * GROUP + start..first * GROUP + start + p.block {
                        let code = p.codes[column / 4].0[lane * 4 + column % 4];
                        let code = if p.signed {
                            i32::from(code as i8)
                        } else {
                            code.into()
                        };
                        let cell = column / GROUP * x.height + row;
                        let x = i32::from(x.codes[cell].0[column % GROUP]);
                        sum += (code - p.zero) * x;
                        x_sum += x;
                    }
                    let at = (first * GROUP + start) / p.block;
                    t = (sum as f32).mul_add(p.scales[at][lane], t);
                    if let Some(minima) = p.minima.get(at) {
                        t = (-minima[lane]).mul_add(x_sum as f32, t);
                    }
                }
                *out = t.mul_add(scale, *out);
            }
        }
    }
}
