//! The encoder on a device with CUDA.
//!
//! [`Device`] is what a device has to be able to do: hold memory, multiply
//! matrices, run the kernels of `kernels.cu`. [`kernels`] launches those, and
//! looks that the memory fits before; [`encoder`] is the forward pass; what a
//! device computes is compared with the processor before anything is believed
//! ([`trial`]). All of that is the same for the two devices there are: NVIDIA's
//! (`nvidia`, with the feature `cuda`), and in tests the processor itself,
//! which runs the same kernels, compiled as C++ (`emulated`).
//!
//! The feature is all that a build needs; CUDA's libraries are looked for when
//! a device is opened. Without the feature this is compiled for tests only.

#[cfg(test)]
mod emulated;
mod encoder;
mod kernels;
mod memory;
#[cfg(feature = "cuda")]
mod nvidia;
#[cfg(test)]
mod tests;
mod trial;

use super::{
    device::{Accelerator, DeviceEncoder, DeviceError},
    encoder::Pooling,
    kernel::Element,
    weights::Config,
};
use memory::Operand;

#[cfg(test)]
pub use emulated::Emulated;
#[cfg(feature = "cuda")]
pub use nvidia::open;

/// The kernels, in CUDA C.
const SOURCE: &str = include_str!("kernels.cu");
/// More numbers of a head than this do not fit a thread's registers.
const MOST_HEAD_SIZE: usize = 128;

/// What NVRTC is told, for a device of an architecture such as `sm_90`. It gives
/// machine code: a driver older than it could not translate what lies between.
fn compiler_options(architecture: &str, head_size: usize) -> [String; 3] {
    [
        format!("--gpu-architecture={architecture}"),
        format!("--define-macro=HEAD_SIZE={head_size}"),
        "--std=c++17".to_owned(),
    ]
}

/// Refuses what kernels compiled for heads of `head_size` numbers cannot compute.
fn check(config: &Config, element: Element, head_size: usize) -> Result<(), DeviceError> {
    if element == Element::Int8 {
        let reason = "int8 is not computed on a CUDA device: choose fp32 or bf16, or the processor";
        return Err(DeviceError::Unsupported { reason: reason.to_owned() });
    }
    if config.head_size() > MOST_HEAD_SIZE {
        let reason = format!(
            "attention heads of {} numbers are not computed on a CUDA device, only up to {MOST_HEAD_SIZE}",
            config.head_size()
        );
        return Err(DeviceError::Unsupported { reason });
    }
    if config.head_size() != head_size {
        let reason = format!(
            "the device was opened for attention heads of {head_size} numbers, and the model has heads of {}",
            config.head_size()
        );
        return Err(DeviceError::Unsupported { reason });
    }
    Ok(())
}

/// A device, with the kernels compiled for one head size. Everything happens in
/// the order of the calls.
trait Device: Clone + Send + Sync + 'static {
    /// A piece of the device's memory. Dropping it gives it back once what was
    /// asked for before is done.
    type Memory: Send;

    /// What the device calls itself.
    fn name(&self) -> &str;

    /// Numbers of a head that the kernels were compiled for.
    fn head_size(&self) -> usize;

    /// Room for so many bytes, which hold anything.
    fn allocate(&self, bytes: usize) -> Result<Self::Memory, DeviceError>;

    /// A copy of `bytes` on the device.
    fn upload(&self, bytes: &[u8]) -> Result<Self::Memory, DeviceError>;

    /// Waits for all that was asked for, then fills `bytes` from the start of
    /// `memory`.
    fn download(&self, memory: &Self::Memory, bytes: &mut [u8]) -> Result<(), DeviceError>;

    /// Asks for a product.
    ///
    /// # Safety
    /// The memory holds the matrices that [`Gemm`] says.
    unsafe fn multiply(&self, gemm: &Gemm<'_, Self::Memory>) -> Result<(), DeviceError>;

    /// Asks for `kernel` in `blocks` blocks.
    ///
    /// # Safety
    /// The arguments are those of the kernel, in number, order and type, and
    /// the memory holds what it touches.
    unsafe fn launch(
        &self,
        kernel: Kernel,
        blocks: u32,
        arguments: &[Argument<'_, Self::Memory>],
    ) -> Result<(), DeviceError>;
}

/// `c = aᵀ · b` in the words of BLAS, where matrices lie column by column: `a`
/// is k × m, `b` is k × n, `c` is m × n, nothing between the columns. Sums, and
/// `c`, are fp32.
struct Gemm<'a, M> {
    m: u32,
    n: u32,
    k: u32,
    /// Floats if `b` is floats, bf16 if that is bf16.
    a: Operand<'a, M>,
    b: Operand<'a, M>,
    c: &'a M,
}

/// What a kernel is given.
#[derive(Clone, Copy)]
enum Argument<'a, M> {
    Memory(&'a M),
    /// A null pointer.
    Nothing,
    Integer(i32),
    Float(f32),
}

/// A function of `kernels.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kernel {
    Embed,
    AddAndNormalise,
    AddAndGelu,
    Attend,
    Pool,
}

impl Kernel {
    /// Every one.
    #[cfg(feature = "cuda")]
    const ALL: [Self; 5] = [Self::Embed, Self::AddAndNormalise, Self::AddAndGelu, Self::Attend, Self::Pool];

    /// What it is called there.
    fn name(self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::AddAndNormalise => "add_and_normalise",
            Self::AddAndGelu => "add_and_gelu",
            Self::Attend => "attend",
            Self::Pool => "pool",
        }
    }

    /// Threads of a block, as `kernels.cu` has them.
    fn threads(self) -> u32 {
        match self {
            Self::Attend => QUERIES,
            _ => 128,
        }
    }
}

/// Queries of one text that a block of [`Kernel::Attend`] works on.
const QUERIES: u32 = 64;

/// Any [`Device`] can be given a model.
impl<D: Device> Accelerator for D {
    fn name(&self) -> &str {
        Device::name(self)
    }

    fn load(
        &self,
        weights: &[u8],
        config: &Config,
        pooling: Pooling,
        element: Element,
    ) -> Result<Box<dyn DeviceEncoder>, DeviceError> {
        check(config, element, self.head_size())?;
        let mut encoder = encoder::Encoder::read(self.clone(), weights, config.clone(), pooling, element)?;
        trial::agrees(&mut encoder, weights, config, pooling, element)?;
        Ok(Box::new(encoder))
    }
}
