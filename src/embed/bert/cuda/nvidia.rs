//! NVIDIA's devices, by way of CUDA's driver, NVRTC and cuBLAS.
//!
//! All three are opened here and not before, so this program starts where there
//! are none of them. `cudarc` panics when it cannot open a library, so it is
//! asked beforehand whether it can.

use std::{
    ffi::{CStr, CString},
    fmt::Display,
    mem::ManuallyDrop,
    panic::{self, AssertUnwindSafe},
    sync::Arc,
};

use cudarc::{
    cublas::{self, CudaBlas, sys as blas},
    driver::{
        CudaContext, CudaFunction, CudaSlice, CudaStream, DevicePtr, LaunchConfig, PushKernelArg,
        result as driver, sys,
    },
    nvrtc::{self, Ptx},
};

use super::{
    Argument, Config, Device, DeviceError, Gemm, Kernel, MOST_HEAD_SIZE, Operand, SOURCE, compiler_options,
};
use crate::embed::bert::device::Accelerator;

/// One device, and the kernels for one head size.
#[derive(Clone)]
struct Nvidia(Arc<Parts>);

struct Parts {
    name: String,
    head_size: usize,
    /// Everything happens in this one order.
    stream: Arc<CudaStream>,
    kernels: Vec<(Kernel, CudaFunction)>,
    blas: ManuallyDrop<CudaBlas>,
}

impl Drop for Parts {
    /// Giving back a cuBLAS that has failed panics in `cudarc`, and would hide
    /// what failed.
    fn drop(&mut self) {
        // SAFETY: it is taken once, here.
        let blas = unsafe { ManuallyDrop::take(&mut self.blas) };
        let _ = panic::catch_unwind(AssertUnwindSafe(|| drop(blas)));
    }
}

type Result<T> = std::result::Result<T, DeviceError>;

/// The first device, if there is one, for models like `config`.
pub fn open(config: &Config) -> Result<Box<dyn Accelerator>> {
    // A library that lacks a function makes `cudarc` panic.
    let opened = panic::catch_unwind(|| Nvidia::open(config.head_size().min(MOST_HEAD_SIZE)));
    let device = opened.unwrap_or_else(|_| failed("CUDA's libraries are not those expected (see above)"))?;
    Ok(Box::new(device))
}

fn missing<T>(reason: impl Into<String>) -> Result<T> {
    Err(DeviceError::Missing { reason: reason.into() })
}

fn failed<T>(reason: impl Into<String>) -> Result<T> {
    Err(DeviceError::Failed { reason: reason.into() })
}

/// `what` did not work, though there is a device.
fn unless<T, E: Display>(result: std::result::Result<T, E>, what: &str) -> Result<T> {
    result.or_else(|error| failed(format!("{what}: {error}")))
}

fn done<T, E: Display>(result: std::result::Result<T, E>) -> Result<T> {
    result.map_err(|error| DeviceError::Failed { reason: error.to_string() })
}

impl Nvidia {
    fn open(head_size: usize) -> Result<Self> {
        libraries()?;
        // Only this says that there is none; what fails later is a device that
        // somebody has to look after.
        let count = driver::init().and_then(|()| driver::device::get_count());
        match count {
            Ok(1..) => {}
            Ok(_) => return missing("the driver has no device"),
            Err(error) => return missing(format!("the driver has no device: {error}")),
        }
        let context = unless(CudaContext::new(0), "the device does not open")?;
        let name = unless(context.name(), "the device has no name")?;
        let (major, minor) = unless(context.compute_capability(), "the device has no architecture")?;
        let machine_code = compile(&format!("sm_{major}{minor}"), head_size)?;
        let module = unless(context.load_module(Ptx::from_binary(machine_code)), "the kernels do not load")?;
        let function = |kernel: Kernel| {
            let function = unless(module.load_function(kernel.name()), "a kernel is missing")?;
            Ok((kernel, function))
        };
        let kernels = Kernel::ALL.into_iter().map(function).collect::<Result<_>>()?;
        let stream = unless(context.new_stream(), "the device takes no work")?;
        let blas = unless(CudaBlas::new(Arc::clone(&stream)), "cuBLAS does not start")?;
        // SAFETY: everything is used in the order of one stream, by which
        // nothing is read before it is written or freed before it is read.
        unsafe { context.disable_event_tracking() };
        Ok(Self(Arc::new(Parts { name, head_size, stream, kernels, blas: ManuallyDrop::new(blas) })))
    }
}

/// Whether the libraries can be opened.
fn libraries() -> Result<()> {
    // SAFETY: opening these runs nothing but their own constructors.
    let present = unsafe {
        [
            ("libcuda, the driver,", sys::is_culib_present()),
            ("libnvrtc", nvrtc::sys::is_culib_present()),
            ("libcublas", blas::is_culib_present()),
        ]
    };
    match present.into_iter().find(|(_, present)| !present) {
        None => Ok(()),
        Some((library, _)) => missing(format!("{library} is not found (see LD_LIBRARY_PATH)")),
    }
}

/// Compiles the kernels to machine code.
fn compile(architecture: &str, head_size: usize) -> Result<Vec<u8>> {
    use nvrtc::result::{compile_program, create_program, destroy_program, get_program_log};

    let source = unless(CString::new(SOURCE), "the kernels are no text")?;
    let program = unless(create_program(&source, Some(c"kernels.cu")), "NVRTC does not start")?;
    let options = compiler_options(architecture, head_size);
    // SAFETY: the program was just made; it is given back below.
    let compiled = unsafe { compile_program(program, &options) };
    let code = if compiled.is_ok() {
        machine_code(program)
    } else {
        // SAFETY: the program is there; its log ends with a zero.
        let log = unsafe { get_program_log(program) }.unwrap_or_default();
        // Characters are signed on some processors.
        let log: Vec<u8> = log.into_iter().flat_map(|c| c.to_ne_bytes()).collect();
        let log = CStr::from_bytes_until_nul(&log).map_or_else(|_| "".into(), CStr::to_string_lossy);
        failed(format!("NVRTC cannot compile the kernels for {architecture}: {}", log.trim()))
    };
    // SAFETY: it is not used any more.
    unless(unsafe { destroy_program(program) }, "NVRTC does not end")?;
    code
}

fn machine_code(program: nvrtc::sys::nvrtcProgram) -> Result<Vec<u8>> {
    let mut size = 0;
    // SAFETY: the program is compiled, and the size has its place.
    unless(unsafe { nvrtc::sys::nvrtcGetCUBINSize(program, &raw mut size).result() }, "NVRTC gives no code")?;
    let mut code = vec![0_u8; size];
    // SAFETY: there is room for as many bytes as it just said.
    let got = unsafe { nvrtc::sys::nvrtcGetCUBIN(program, code.as_mut_ptr().cast()).result() };
    unless(got, "NVRTC gives no code")?;
    Ok(code)
}

impl Device for Nvidia {
    type Memory = CudaSlice<u8>;

    fn name(&self) -> &str {
        &self.0.name
    }

    fn head_size(&self) -> usize {
        self.0.head_size
    }

    fn allocate(&self, bytes: usize) -> Result<Self::Memory> {
        // SAFETY: whoever asks knows that it holds anything, and bytes may.
        done(unsafe { self.0.stream.alloc(bytes) })
    }

    fn upload(&self, bytes: &[u8]) -> Result<Self::Memory> {
        let memory = done(self.0.stream.clone_htod(bytes))?;
        // The bytes may be gone once this returns.
        done(self.0.stream.synchronize())?;
        Ok(memory)
    }

    fn download(&self, memory: &Self::Memory, bytes: &mut [u8]) -> Result<()> {
        let stream = &self.0.stream;
        let Some(part) = memory.try_slice(..bytes.len()) else {
            return Err(DeviceError::Failed { reason: "less memory than was asked for".to_owned() });
        };
        done(stream.memcpy_dtoh(&part, bytes))?;
        done(stream.synchronize())
    }

    unsafe fn multiply(&self, gemm: &Gemm<'_, Self::Memory>) -> Result<()> {
        let Parts { stream, blas: handle, .. } = &*self.0;
        done(stream.context().bind_to_thread())?;
        let kind = match gemm.a {
            Operand::Floats(_) => blas::cudaDataType_t::CUDA_R_32F,
            Operand::Halves(_) => blas::cudaDataType_t::CUDA_R_16BF,
        };
        let [m, n, k] = [gemm.m, gemm.n, gemm.k].map(u32::cast_signed);
        let (a, _a) = gemm.a.memory().device_ptr(stream);
        let (b, _b) = gemm.b.memory().device_ptr(stream);
        let (c, _c) = gemm.c.device_ptr(stream);
        let (one, zero) = (1.0_f32, 0.0_f32);
        // SAFETY: the caller promises that the matrices are there; the factors
        // are read before this returns. Sums are fp32, and fp32 operands are
        // multiplied as such: this is not the type that allows TF32.
        done(unsafe {
            cublas::result::gemm_ex(
                *handle.handle(),
                blas::cublasOperation_t::CUBLAS_OP_T,
                blas::cublasOperation_t::CUBLAS_OP_N,
                m,
                n,
                k,
                (&raw const one).cast(),
                a as *const _,
                kind,
                k,
                b as *const _,
                kind,
                k,
                (&raw const zero).cast(),
                c as *mut _,
                blas::cudaDataType_t::CUDA_R_32F,
                m,
                blas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        })
    }

    unsafe fn launch(
        &self,
        kernel: Kernel,
        blocks: u32,
        arguments: &[Argument<'_, Self::Memory>],
    ) -> Result<()> {
        let Some((_, function)) = self.0.kernels.iter().find(|(known, _)| *known == kernel) else {
            return Err(DeviceError::Failed { reason: format!("there is no kernel {}", kernel.name()) });
        };
        let mut launch = self.0.stream.launch_builder(function);
        for argument in arguments {
            match argument {
                Argument::Memory(memory) => launch.arg(*memory),
                Argument::Nothing => launch.arg(&NOTHING),
                Argument::Integer(n) => launch.arg(n),
                Argument::Float(x) => launch.arg(x),
            };
        }
        let (grid_dim, block_dim) = ((blocks, 1, 1), (kernel.threads(), 1, 1));
        // SAFETY: the caller promises that these are the kernel's arguments.
        done(unsafe { launch.launch(LaunchConfig { grid_dim, block_dim, shared_mem_bytes: 0 }) })?;
        Ok(())
    }
}

/// A null pointer, as the device has them.
const NOTHING: sys::CUdeviceptr = 0;
