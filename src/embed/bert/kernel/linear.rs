//! Dense layers: products with weights that never change.

#[cfg(target_arch = "x86_64")]
use super::{bf16, fp32, int8};
use super::{
    product::{Output, View, ViewMut, multiply},
    round::Element,
};

/// A dense layer: `output = input · weights + bias`, its operands rounded as
/// an [`Element`] says. The weights are laid out once for the fastest product
/// that the processor and their shape allow.
pub struct Linear {
    product: Product,
    inputs: usize,
    outputs: usize,
}

enum Product {
    /// Of operands in their own format.
    #[cfg(target_arch = "x86_64")]
    Bf16(bf16::Panels),
    #[cfg(target_arch = "x86_64")]
    Int8(int8::Panels),
    /// Of fp32 operands, rounded beforehand.
    Rounded(Element, Floats),
}

/// A product of fp32 operands.
enum Floats {
    #[cfg(target_arch = "x86_64")]
    Panels(fp32::Panels),
    /// Weights inputs × outputs, row-major.
    Portable { weights: Vec<f32>, bias: Vec<f32> },
}

impl Element {
    /// `bf16` where the processor multiplies it faster than `fp32`, which it
    /// is practically as faithful as; else `fp32`.
    pub fn fastest_faithful() -> Self {
        #[cfg(target_arch = "x86_64")]
        if bf16::is_fast() {
            return Self::Bf16;
        }
        Self::Fp32
    }

    /// What multiplies such numbers on this processor, for people to read.
    pub fn kernel(self) -> &'static str {
        #[cfg(target_arch = "x86_64")]
        match (self, fp32::Isa::detect().next()) {
            (Self::Bf16, _) if bf16::is_fast() => return "AVX-512 BF16",
            (Self::Int8, _) if int8::is_available() => return "AVX-512 VNNI",
            (_, Some(fp32::Isa::Avx512)) => return "AVX-512 fp32",
            (_, Some(fp32::Isa::Avx2)) => return "AVX2 fp32",
            _ => {}
        }
        "portable fp32"
    }
}

/// Room of one thread for the rounded input of a product.
#[derive(Default)]
pub struct Operands {
    floats: Vec<f32>,
    #[cfg(target_arch = "x86_64")]
    bf16: Vec<u16>,
    #[cfg(target_arch = "x86_64")]
    int8: int8::Quantised,
}

impl Linear {
    /// From `weights` as checkpoints hold them: outputs × inputs, row-major;
    /// `bias` has one number per output. Panics if the two do not fit.
    pub fn new(weights: &[f32], bias: &[f32], element: Element) -> Self {
        let outputs = bias.len();
        let inputs = weights.len().checked_div(outputs).unwrap_or(0);
        assert!(inputs * outputs == weights.len() && inputs > 0, "weights do not fit {outputs} outputs");
        Self { product: Product::fastest(weights, bias, element), inputs, outputs }
    }

    /// Numbers in a row of the output.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Applies the layer to each row of `input`; `output` has as many rows.
    /// Panics if it has not, or if there are none.
    pub fn apply(&self, input: &[f32], output: &mut [f32], operands: &mut Operands) {
        match &self.product {
            #[cfg(target_arch = "x86_64")]
            Product::Bf16(panels) => panels.apply(input, output, &mut operands.bf16),
            #[cfg(target_arch = "x86_64")]
            Product::Int8(panels) => panels.apply(input, output, &mut operands.int8),
            Product::Rounded(Element::Fp32, floats) => floats.apply(input, output, self.inputs),
            Product::Rounded(element, floats) => {
                let rounded = &mut operands.floats;
                rounded.clear();
                rounded.extend_from_slice(input);
                rounded.chunks_exact_mut(self.inputs).for_each(|row| element.round_row(row));
                floats.apply(rounded, output, self.inputs);
            }
        }
    }
}

impl Product {
    fn fastest(weights: &[f32], bias: &[f32], element: Element) -> Self {
        #[cfg(target_arch = "x86_64")]
        match element {
            Element::Bf16 if bf16::is_fast() => {
                if let Some(panels) = bf16::Panels::new(weights, bias) {
                    return Self::Bf16(panels);
                }
            }
            Element::Int8 => {
                if let Some(panels) = int8::Panels::new(weights, bias) {
                    return Self::Int8(panels);
                }
            }
            _ => {}
        }
        Self::rounded(weights, bias, element, Floats::fastest)
    }

    fn rounded(
        weights: &[f32],
        bias: &[f32],
        element: Element,
        floats: impl Fn(&[f32], &[f32]) -> Floats,
    ) -> Self {
        let mut rounded = weights.to_vec();
        rounded.chunks_exact_mut(weights.len() / bias.len()).for_each(|row| element.round_weights(row));
        Self::Rounded(element, floats(&rounded, bias))
    }
}

impl Floats {
    fn fastest(weights: &[f32], bias: &[f32]) -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(panels) = fp32::Isa::detect().next().and_then(|isa| fp32::Panels::new(weights, bias, isa))
        {
            return Self::Panels(panels);
        }
        Self::portable(weights, bias)
    }

    fn portable(weights: &[f32], bias: &[f32]) -> Self {
        let (outputs, inputs) = (bias.len(), weights.len() / bias.len());
        let mut transposed = vec![0.0; weights.len()];
        for (column, row) in weights.chunks_exact(inputs).enumerate() {
            let cells = transposed.iter_mut().skip(column).step_by(outputs);
            for (cell, weight) in cells.zip(row) {
                *cell = *weight;
            }
        }
        Self::Portable { weights: transposed, bias: bias.to_vec() }
    }

    fn apply(&self, input: &[f32], output: &mut [f32], inputs: usize) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Panels(panels) => panels.apply(input, output),
            Self::Portable { weights, bias } => {
                let (rows, outputs) = (input.len() / inputs, bias.len());
                for row in output.chunks_exact_mut(outputs) {
                    row.copy_from_slice(bias);
                }
                multiply(
                    View::new(input, rows, inputs, inputs),
                    View::new(weights, inputs, outputs, outputs),
                    ViewMut::new(output, rows, outputs, outputs),
                    Output::Add,
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_linear_layer_takes_weights_as_checkpoints_hold_them() {
        // Two outputs of three inputs.
        let layer = Linear::new(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[0.5, -0.5], Element::Fp32);
        let mut output = [f32::NAN; 4];
        layer.apply(&[1.0, 0.0, -1.0, 2.0, 1.0, 0.0], &mut output, &mut Operands::default());
        assert_eq!(output, [-1.5, -2.5, 4.5, 12.5]);
    }

    proptest! {
        #[test]
        fn every_kernel_agrees_with_the_portable_product_of_the_rounded_operands(
            rows in 1usize..130, groups in 1usize..80, panels in 1usize..4, seed in 0u32..1_000,
        ) {
            let (inputs, outputs) = (groups * 4, panels * 32);
            let number = |i: usize| (((i as u32).wrapping_mul(2_654_435_761) ^ seed) >> 8) as f32 / 8e6 - 1.0;
            let weights: Vec<f32> = (0..outputs * inputs).map(number).collect();
            let bias: Vec<f32> = (0..outputs).map(|i| number(i + 3)).collect();
            let input: Vec<f32> = (0..rows * inputs).map(|i| number(i + 7)).collect();
            let apply = |product| {
                let mut output = vec![f32::NAN; rows * outputs];
                Linear { product, inputs, outputs }.apply(&input, &mut output, &mut Operands::default());
                output
            };
            for element in Element::ALL {
                let portable = apply(Product::rounded(&weights, &bias, element, Floats::portable));
                let mut others = vec![("fastest", Product::fastest(&weights, &bias, element))];
                // Not the fastest everywhere, but right.
                #[cfg(target_arch = "x86_64")]
                if element == Element::Bf16 {
                    others.extend(bf16::Panels::new(&weights, &bias).map(|panels| ("dot", Product::Bf16(panels))));
                }
                for (name, product) in others {
                    for (a, b) in apply(product).into_iter().zip(&portable) {
                        prop_assert!((a - b).abs() < 1e-4, "{} {}: {} and {}", element, name, a, b);
                    }
                }
            }
        }
    }
}
