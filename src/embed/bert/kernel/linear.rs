//! Dense layers: products with weights that never change.

#[cfg(target_arch = "x86_64")]
use super::panels::{Isa, Panels};
use super::product::{Output, View, ViewMut, multiply};

/// A dense layer: `output = input · weights + bias`. The weights are laid out
/// once for the fastest product that the processor and their shape allow.
pub struct Linear {
    product: Product,
    inputs: usize,
    outputs: usize,
}

enum Product {
    #[cfg(target_arch = "x86_64")]
    Panels(Panels),
    /// Weights inputs × outputs, row-major.
    Portable { weights: Vec<f32>, bias: Vec<f32> },
}

impl Linear {
    /// From `weights` as checkpoints hold them: outputs × inputs, row-major;
    /// `bias` has one number per output. Panics if the two do not fit.
    pub fn new(weights: &[f32], bias: &[f32]) -> Self {
        let outputs = bias.len();
        let inputs = weights.len().checked_div(outputs).unwrap_or(0);
        assert!(inputs * outputs == weights.len() && inputs > 0, "weights do not fit {outputs} outputs");
        Self { product: Product::fastest(weights, bias), inputs, outputs }
    }

    /// Numbers in a row of the output.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Applies the layer to each row of `input`; `output` has as many rows.
    /// Panics if it has not, or if there are none.
    pub fn apply(&self, input: &[f32], output: &mut [f32]) {
        match &self.product {
            #[cfg(target_arch = "x86_64")]
            Product::Panels(panels) => panels.apply(input, output),
            Product::Portable { weights, bias } => {
                let (rows, inputs, outputs) = (input.len() / self.inputs, self.inputs, self.outputs);
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

impl Product {
    fn fastest(weights: &[f32], bias: &[f32]) -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(panels) = Isa::detect().next().and_then(|isa| Panels::new(weights, bias, isa)) {
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
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_linear_layer_takes_weights_as_checkpoints_hold_them() {
        // Two outputs of three inputs.
        let layer = Linear::new(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[0.5, -0.5]);
        let mut output = [f32::NAN; 4];
        layer.apply(&[1.0, 0.0, -1.0, 2.0, 1.0, 0.0], &mut output);
        assert_eq!(output, [-1.5, -2.5, 4.5, 12.5]);
    }

    proptest! {
        #[test]
        fn the_fastest_product_agrees_with_the_portable_one(
            rows in 1usize..130, inputs in 1usize..100, panels in 1usize..4, seed in 0u32..1_000,
        ) {
            let outputs = panels * 32;
            let number = |i: usize| (((i as u32).wrapping_mul(2_654_435_761) ^ seed) >> 8) as f32 / 8e6 - 1.0;
            let weights: Vec<f32> = (0..outputs * inputs).map(number).collect();
            let bias: Vec<f32> = (0..outputs).map(|i| number(i + 3)).collect();
            let input: Vec<f32> = (0..rows * inputs).map(|i| number(i + 7)).collect();
            let apply = |product| {
                let mut output = vec![f32::NAN; rows * outputs];
                Linear { product, inputs, outputs }.apply(&input, &mut output);
                output
            };
            let fastest = apply(Product::fastest(&weights, &bias));
            for (a, b) in fastest.into_iter().zip(apply(Product::portable(&weights, &bias))) {
                prop_assert!((a - b).abs() < 1e-4, "{} and {}", a, b);
            }
        }
    }
}
