//! The bare loop that no product can be faster than: the instruction that
//! multiplies and adds, on registers alone.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m512bh, __m512i, _mm256_fmadd_ps, _mm256_set1_ps, _mm256_storeu_ps, _mm512_dpbf16_ps,
    _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_si512,
    _mm512_storeu_ps, _mm512_storeu_si512,
};

use super::round::Element;
#[cfg(target_arch = "x86_64")]
use super::{bf16, fp32::Isa, int8};

/// Sums that take turns, so that none waits for its last addition.
#[cfg(target_arch = "x86_64")]
const SUMS: usize = 12;

impl Element {
    /// Does `rounds` rounds of nothing but the instruction that products of
    /// this element consist of here. Returns how many operations that was: a
    /// multiplication and an addition are two. `None` where no instruction is
    /// chosen by us.
    pub fn multiply_and_add(self, rounds: u32) -> Option<f64> {
        #[cfg(target_arch = "x86_64")]
        {
            let isa = Isa::detect().next()?;
            // SAFETY: the processor was found to have each set of instructions.
            let lanes = unsafe {
                match self {
                    Self::Bf16 if bf16::is_fast() => dpbf16(rounds),
                    Self::Int8 if int8::is_available() => dpbusd(rounds),
                    _ if isa == Isa::Avx512 => fmadd_512(rounds),
                    _ => fmadd_256(rounds),
                }
            };
            #[expect(clippy::cast_precision_loss, reason = "a few dozen")]
            Some(2.0 * (lanes * SUMS) as f64 * f64::from(rounds))
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = rounds;
            None
        }
    }
}

/// Returns the multiplications of one instruction, as the others do.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn fmadd_512(rounds: u32) -> usize {
    let (x, y) = (_mm512_set1_ps(0.5), _mm512_set1_ps(0.25));
    let mut sums = std::hint::black_box([x; SUMS]);
    for _ in 0..rounds {
        sums.iter_mut().for_each(|sum| *sum = _mm512_fmadd_ps(*sum, x, y));
    }
    let mut out = [[0.0; 16]; SUMS];
    for (out, sum) in out.iter_mut().zip(sums) {
        // SAFETY: `out` is 16 numbers.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sum) };
    }
    std::hint::black_box(&out);
    16
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn fmadd_256(rounds: u32) -> usize {
    let (x, y) = (_mm256_set1_ps(0.5), _mm256_set1_ps(0.25));
    let mut sums = std::hint::black_box([x; SUMS]);
    for _ in 0..rounds {
        sums.iter_mut().for_each(|sum| *sum = _mm256_fmadd_ps(*sum, x, y));
    }
    let mut out = [[0.0; 8]; SUMS];
    for (out, sum) in out.iter_mut().zip(sums) {
        // SAFETY: `out` is 8 numbers.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), sum) };
    }
    std::hint::black_box(&out);
    8
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn dpbf16(rounds: u32) -> usize {
    // SAFETY: 512 bits without invalid values; each half is a bf16 of 1.
    let x = unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(0x3f80_3f80)) };
    let mut sums = std::hint::black_box([_mm512_set1_ps(0.0); SUMS]);
    for _ in 0..rounds {
        sums.iter_mut().for_each(|sum| *sum = _mm512_dpbf16_ps(*sum, x, x));
    }
    let mut out = [[0.0; 16]; SUMS];
    for (out, sum) in out.iter_mut().zip(sums) {
        // SAFETY: `out` is 16 numbers.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sum) };
    }
    std::hint::black_box(&out);
    32
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
fn dpbusd(rounds: u32) -> usize {
    let x = _mm512_set1_epi32(0x0101_0101);
    let mut sums = std::hint::black_box([_mm512_setzero_si512(); SUMS]);
    for _ in 0..rounds {
        sums.iter_mut().for_each(|sum| *sum = _mm512_dpbusd_epi32(*sum, x, x));
    }
    let mut out = [[0i32; 16]; SUMS];
    for (out, sum) in out.iter_mut().zip(sums) {
        // SAFETY: `out` is 16 integers of 4 bytes.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), sum) };
    }
    std::hint::black_box(&out);
    64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_counted_by_the_round() {
        for element in Element::ALL {
            let (one, ten) = (element.multiply_and_add(1), element.multiply_and_add(10));
            assert_eq!(one.map(|n| n * 10.0), ten);
            assert!(one.is_none_or(|n| n >= 2.0 * 8.0 * 12.0));
        }
    }
}
