//! The forward pass on a device, run for real: the kernels compiled as C++.

use std::{
    ffi::{CString, c_char},
    path::Path,
};

use safetensors::Dtype;

use super::{
    super::{Accelerator, Config, DeviceEncoder, DeviceError, Element, Encoder, Pooling, Scratch},
    Emulated, Kernel, SOURCE, compiler_options, encoder,
};
use crate::embed::{
    cosine,
    tests::made::{Made, Shape, VOCABULARY},
};

const POSITIONS: usize = 200;

/// The weights and the configuration of a model that nobody trained.
fn made(shape: Shape, seed: u32) -> (Vec<u8>, Config) {
    let dir = tempfile::tempdir().unwrap();
    Made::with_positions(shape, seed, POSITIONS).write(dir.path(), Dtype::F32, "");
    let read = |path: &str| std::fs::read(dir.path().join(path)).unwrap();
    (read("model.safetensors"), serde_json::from_slice(&read("config.json")).unwrap())
}

const SMALL: Shape = Shape { hidden: 64, heads: 2, wide: 96, layers: 2 };

/// Texts of these lengths.
fn batch(lengths: &[usize], seed: u32) -> Vec<Vec<u32>> {
    let mut state = seed;
    let mut id = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) % u32::try_from(VOCABULARY).unwrap()
    };
    lengths.iter().map(|length| (0..*length).map(&mut id).collect()).collect()
}

fn on_a_device(
    device: &Emulated,
    (weights, config): &(Vec<u8>, Config),
    pooling: Pooling,
    element: Element,
) -> encoder::Encoder<Emulated> {
    encoder::Encoder::read(device.clone(), weights, config.clone(), pooling, element).unwrap()
}

#[test]
fn a_device_computes_what_the_processor_computes() {
    // Around what a block, a tile of keys and a tile of queries hold, and
    // batches that grow and shrink.
    let batches: [&[usize]; 6] =
        [&[3], &[1, 33, 64, 2, 200, 65], &[1], &[31, 32, 33, 1, 1, 8, 9], &[129, 128, 127], &[]];
    for (seed, (hidden, heads, wide, layers)) in [
        (64, 2, 96, 2),
        // Heads of 64, rows of more than a block's threads.
        (192, 3, 256, 1),
        // Nothing is a power of two.
        (30, 3, 50, 2),
        // Every token is one head.
        (12, 1, 20, 1),
    ]
    .into_iter()
    .enumerate()
    {
        let shape = Shape { hidden, heads, wide, layers };
        let seed = u32::try_from(seed).unwrap();
        let model = made(shape, seed);
        let Some(device) = Emulated::open(hidden / heads) else { return };
        for (element, pooling, least) in [
            (Element::Fp32, Pooling::Mean, 0.999_999),
            (Element::Fp32, Pooling::Cls, 0.999_999),
            (Element::Bf16, Pooling::Mean, 0.999_99),
            (Element::Bf16, Pooling::Cls, 0.999_99),
        ] {
            let mut ours = on_a_device(&device, &model, pooling, element);
            let theirs = Encoder::read(&model.0, model.1.clone(), pooling, element).unwrap();
            for lengths in batches {
                let batch = batch(lengths, seed);
                let ours = ours.encode(&batch).unwrap();
                let theirs = theirs.encode(&batch, &mut Scratch::default());
                assert_eq!(ours.len(), theirs.len());
                for ((ours, theirs), ids) in ours.iter().zip(&theirs).zip(&batch) {
                    let cosine = cosine(ours, theirs);
                    let length = ours.iter().map(|x| x * x).sum::<f32>();
                    assert!(
                        cosine > least && (length - 1.0).abs() < 1e-5,
                        "{shape:?} {element} {pooling:?}, {} tokens of {lengths:?}: {cosine}",
                        ids.len()
                    );
                }
            }
        }
    }
}

#[test]
fn a_text_gets_the_same_bits_in_any_batch_and_whatever_order_threads_run_in() {
    let model = made(SMALL, 5);
    let Some(device) = Emulated::open(32) else { return };
    let backwards = device.clone().backwards();
    let batch = batch(&[40, 1, 130, 65, 7], 3);
    for element in [Element::Fp32, Element::Bf16] {
        let together = on_a_device(&device, &model, Pooling::Mean, element).encode(&batch).unwrap();
        let other_way = on_a_device(&backwards, &model, Pooling::Mean, element).encode(&batch).unwrap();
        assert!(together == other_way, "{element}: a kernel lacks a __syncthreads");
        let mut alone = on_a_device(&device, &model, Pooling::Mean, element);
        for (text, expected) in batch.iter().zip(&together) {
            assert_eq!(&alone.encode(std::slice::from_ref(text)).unwrap()[0], expected);
        }
    }
}

#[test]
fn a_device_that_computes_something_else_is_not_used() {
    let (weights, config) = made(SMALL, 6);
    let Some(device) = Emulated::open(32) else { return };
    let load = |device: &Emulated, element| device.load(&weights, &config, Pooling::Mean, element);
    for element in [Element::Fp32, Element::Bf16] {
        assert!(load(&device, element).is_ok());
        // Without the last one vectors are what memory happened to hold.
        for kernel in [Kernel::AddAndGelu, Kernel::Attend, Kernel::AddAndNormalise, Kernel::Pool] {
            let error = load(&device.clone().without(kernel), element).err().unwrap();
            assert!(matches!(error, DeviceError::Disagrees { .. }), "{kernel:?}: {error}");
            assert!(error.to_string().contains("--device cpu"), "{error}");
        }
    }
}

#[test]
fn what_the_kernels_cannot_compute_is_refused() {
    let (weights, config) = made(Shape { hidden: 258, heads: 2, wide: 8, layers: 1 }, 1);
    let Some(device) = Emulated::open(8) else { return };
    let refused = |element| device.load(&weights, &config, Pooling::Mean, element).err().unwrap().to_string();
    assert!(refused(Element::Fp32).contains("heads of 129 numbers"), "{}", refused(Element::Fp32));
    assert!(refused(Element::Int8).contains("choose fp32 or bf16"), "{}", refused(Element::Int8));
    let (weights, config) = made(SMALL, 1);
    let error = device.load(&weights, &config, Pooling::Mean, Element::Fp32).err().unwrap().to_string();
    assert!(
        error.contains("opened for attention heads of 8 numbers, and the model has heads of 32"),
        "{error}"
    );
}

/// What NVRTC's functions give.
type Status = libc::c_int;
type Program = *mut libc::c_void;

/// Needs no device. `THALWEG_TEST_NVRTC` names the library: of CUDA, or of
/// PyPI's `nvidia-cuda-nvrtc`.
#[test]
fn nvrtc_compiles_the_kernels() {
    let Some(library) = std::env::var_os("THALWEG_TEST_NVRTC") else {
        eprintln!(
            "SKIPPED: THALWEG_TEST_NVRTC names no libnvrtc, so the kernels were not compiled for a device"
        );
        return;
    };
    let path = CString::new(Path::new(&library).to_str().unwrap()).unwrap();
    // SAFETY: opening it runs nothing but its own constructors.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
    assert!(!handle.is_null(), "{} cannot be opened", library.display());
    // SAFETY: NVRTC's functions have these parameters, and get what they want:
    // texts that end with zero, and places for what they give.
    macro_rules! nvrtc {
        ($name:literal($($argument:expr => $kind:ty),*)) => {{
            let function = unsafe { libc::dlsym(handle, $name.as_ptr()) };
            assert!(!function.is_null());
            let function: unsafe extern "C" fn($($kind),*) -> Status = unsafe { std::mem::transmute(function) };
            unsafe { function($($argument),*) }
        }};
    }
    let source = CString::new(SOURCE).unwrap();
    let nothing = std::ptr::null::<libc::c_void>();
    for (architecture, head_size) in [("sm_80", 32), ("sm_90", 32), ("sm_90", 64)] {
        let mut program: Program = std::ptr::null_mut();
        let made = nvrtc!(c"nvrtcCreateProgram"(&raw mut program => *mut Program, source.as_ptr() => *const c_char,
            c"kernels.cu".as_ptr() => *const c_char, 0 => Status, nothing => *const libc::c_void,
            nothing => *const libc::c_void));
        assert_eq!(made, 0);
        let options = compiler_options(architecture, head_size).map(|option| CString::new(option).unwrap());
        let options = options.each_ref().map(|option| option.as_ptr());
        let compiled = nvrtc!(c"nvrtcCompileProgram"(program => Program, 3 => Status,
            options.as_ptr() => *const *const c_char));
        let mut log_bytes = 0;
        nvrtc!(c"nvrtcGetProgramLogSize"(program => Program, &raw mut log_bytes => *mut usize));
        let mut log = vec![0_u8; log_bytes];
        nvrtc!(c"nvrtcGetProgramLog"(program => Program, log.as_mut_ptr() => *mut u8));
        assert_eq!(compiled, 0, "{architecture}: {}", String::from_utf8_lossy(&log));
        let mut code_bytes = 0;
        nvrtc!(c"nvrtcGetCUBINSize"(program => Program, &raw mut code_bytes => *mut usize));
        println!("{architecture}, heads of {head_size}: {code_bytes} bytes of machine code");
        assert!(code_bytes > 10_000);
        nvrtc!(c"nvrtcDestroyProgram"(&raw mut program => *mut Program));
    }
}
