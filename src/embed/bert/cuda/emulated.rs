//! A device for tests: the processor, which runs `kernels.cu` compiled as C++.

use std::{
    cell::UnsafeCell,
    ffi::{CStr, CString, c_char, c_int, c_void},
    path::Path,
    process::Command,
    ptr,
    sync::{Arc, Mutex, PoisonError},
};

use super::{Argument, Device, DeviceError, Gemm, Kernel, Operand};

/// Beside each piece of memory, to see that nothing goes over the end.
const FENCE: usize = 1_024;
/// What memory holds at first, and fences always: as a float, not a number.
const UNTOUCHED: u128 = u128::MAX;

type Launch = unsafe extern "C" fn(*const c_char, u32, u32, *mut *mut c_void, c_int) -> c_int;
type Multiply = unsafe extern "C" fn(u32, u32, u32, *const c_void, *const c_void, *mut f32, c_int);

/// The processor as a device.
#[derive(Clone)]
pub struct Emulated {
    library: Arc<Library>,
    head_size: usize,
    /// Whether the threads of a block run from the last to the first.
    backwards: bool,
    /// A kernel that is left out: what a broken device could do.
    left_out: Option<Kernel>,
}

struct Library {
    launch: Launch,
    multiply: Multiply,
    /// The kernels' shared memory is the library's: one launch at a time.
    running: Mutex<()>,
}

/// Memory of such a device.
pub struct Memory {
    /// Aligned for whatever is in it. Kernels write to what they were given a
    /// shared reference to, as on any device.
    cells: Box<[UnsafeCell<u128>]>,
}

// SAFETY: only `launch`, `multiply` and `download` look into the cells, and
// each device runs one of them at a time.
unsafe impl Send for Memory {}

impl Emulated {
    /// A device for heads of so many numbers. `None`, said loudly, where there
    /// is no C++ compiler.
    pub fn open(head_size: usize) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let object = folder.path().join("kernels.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/embed/bert/cuda/emulation.cpp");
        let mut compiler = Command::new("c++");
        // Fortified jumps refuse to change stacks.
        compiler.args(["-std=c++17", "-O3", "-march=native", "-U_FORTIFY_SOURCE", "-Wno-unknown-pragmas"]);
        compiler.args(["-shared", "-fPIC"]);
        compiler.arg(format!("-DHEAD_SIZE={head_size}")).arg("-o").arg(&object).arg(source);
        match compiler.output() {
            Ok(done) => {
                assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            }
            Err(error) => {
                eprintln!(
                    "SKIPPED: there is no C++ compiler ({error}), so the CUDA kernels were not run (Debian: apt-get install g++)"
                );
                return None;
            }
        }
        let library = Arc::new(Library::load(&object));
        Some(Self { library, head_size, backwards: false, left_out: None })
    }

    /// This device with the threads in the other order.
    pub(super) fn backwards(mut self) -> Self {
        self.backwards = true;
        self
    }

    /// This device without one of its kernels.
    pub(super) fn without(mut self, kernel: Kernel) -> Self {
        self.left_out = Some(kernel);
        self
    }
}

impl Library {
    /// Stays loaded until the process ends.
    fn load(path: &Path) -> Self {
        let path = CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: the library has no constructors but those of its vectors.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!handle.is_null(), "the compiled kernels cannot be loaded");
        let symbol = |name: &CStr| {
            // SAFETY: the handle is open, and is never closed.
            let symbol = unsafe { libc::dlsym(handle, name.as_ptr()) };
            assert!(!symbol.is_null(), "{name:?} is missing");
            symbol
        };
        // SAFETY: the functions in emulation.cpp have these parameters.
        let (launch, multiply) = unsafe {
            (
                std::mem::transmute::<*mut c_void, Launch>(symbol(c"launch")),
                std::mem::transmute::<*mut c_void, Multiply>(symbol(c"multiply")),
            )
        };
        Self { launch, multiply, running: Mutex::new(()) }
    }
}

impl Memory {
    fn start(&self) -> *mut c_void {
        self.cells[FENCE].get().cast()
    }

    fn bytes(&self) -> usize {
        (self.cells.len() - 2 * FENCE) * size_of::<u128>()
    }

    fn check(&self) {
        let end = self.cells.len() - FENCE;
        for cell in self.cells[..FENCE].iter().chain(&self.cells[end..]) {
            // SAFETY: nothing runs that could write.
            assert_eq!(unsafe { *cell.get() }, UNTOUCHED, "a kernel went over the end of its memory");
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.check();
        }
    }
}

impl Device for Emulated {
    type Memory = Memory;

    fn name(&self) -> &str {
        "emulated"
    }

    fn head_size(&self) -> usize {
        self.head_size
    }

    fn allocate(&self, bytes: usize) -> Result<Memory, DeviceError> {
        // Whole cells, so the last few bytes over the end are not seen.
        let cells = bytes.div_ceil(size_of::<u128>()) + 2 * FENCE;
        Ok(Memory { cells: (0..cells).map(|_| UnsafeCell::new(UNTOUCHED)).collect() })
    }

    fn upload(&self, bytes: &[u8]) -> Result<Memory, DeviceError> {
        let memory = self.allocate(bytes.len())?;
        // SAFETY: it is as large as that, and nobody else knows of it.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), memory.start().cast(), bytes.len()) };
        Ok(memory)
    }

    fn download(&self, memory: &Memory, bytes: &mut [u8]) -> Result<(), DeviceError> {
        assert!(bytes.len() <= memory.bytes());
        let _running = self.library.running.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: it is as large as that, and nothing runs that could write.
        unsafe { ptr::copy_nonoverlapping(memory.start().cast(), bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    unsafe fn multiply(&self, gemm: &Gemm<'_, Memory>) -> Result<(), DeviceError> {
        let _running = self.library.running.lock().unwrap_or_else(PoisonError::into_inner);
        let halves = c_int::from(matches!(gemm.a, Operand::Halves(_)));
        let (a, b) = (gemm.a.memory().start(), gemm.b.memory().start());
        // SAFETY: the caller promises that the matrices are there.
        unsafe {
            (self.library.multiply)(gemm.m, gemm.n, gemm.k, a, b, gemm.c.start().cast(), halves);
        }
        Ok(())
    }

    unsafe fn launch(
        &self,
        kernel: Kernel,
        blocks: u32,
        arguments: &[Argument<'_, Memory>],
    ) -> Result<(), DeviceError> {
        if self.left_out == Some(kernel) {
            return Ok(());
        }
        let _running = self.library.running.lock().unwrap_or_else(PoisonError::into_inner);
        // Each in a place of its own that is as large as the largest.
        let mut values: Vec<u64> = arguments
            .iter()
            .map(|argument| match argument {
                Argument::Memory(memory) => memory.start() as u64,
                Argument::Nothing => 0,
                Argument::Integer(n) => u64::from(n.cast_unsigned()),
                Argument::Float(x) => u64::from(x.to_bits()),
            })
            .collect();
        let mut pointers: Vec<*mut c_void> =
            values.iter_mut().map(|value| ptr::from_mut(value).cast()).collect();
        let name = CString::new(kernel.name()).unwrap();
        let (threads, backwards) = (kernel.threads(), c_int::from(self.backwards));
        // SAFETY: the caller promises that these are the kernel's arguments.
        let result = unsafe {
            (self.library.launch)(name.as_ptr(), blocks, threads, pointers.as_mut_ptr(), backwards)
        };
        assert_eq!(result, 0, "{kernel:?}: 1 means that there is none, 2 that threads part ways");
        for argument in arguments {
            if let Argument::Memory(memory) = argument {
                memory.check();
            }
        }
        Ok(())
    }
}
