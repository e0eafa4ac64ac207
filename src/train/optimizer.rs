//! AdamW (Loshchilov & Hutter 2019) in one pass over each parameter, and the learning-rate schedule.

use std::sync::Mutex;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor, Var, bail};
use multiversion::multiversion;
use serde::{Deserialize, Serialize};

use crate::model::ops::with_values;

/// Settings of AdamW.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AdamWConfig {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the second.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// The gradient of all parameters together is scaled down to this norm.
    pub max_grad_norm: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
        }
    }
}

/// AdamW over named parameters.
pub struct AdamW {
    config: AdamWConfig,
    parameters: Vec<Parameter>,
    steps: usize,
}

struct Parameter {
    name: String,
    variable: Var,
    moments: Mutex<Moments>,
}

#[derive(Clone)]
struct Moments {
    first: Vec<f32>,
    second: Vec<f32>,
}

impl AdamW {
    /// Begins with zero moments.
    ///
    /// # Errors
    /// When a parameter is not a variable.
    pub fn new(parameters: Vec<(String, Tensor)>, config: AdamWConfig) -> Result<Self> {
        let parameters = parameters
            .into_iter()
            .map(|(name, tensor)| {
                if !tensor.is_variable() {
                    bail!("{name} is not a variable")
                }
                let zeros = vec![0f32; tensor.elem_count()];
                let moments = Mutex::new(Moments {
                    first: zeros.clone(),
                    second: zeros,
                });
                Ok(Parameter {
                    name,
                    variable: Var::from_tensor(&tensor)?,
                    moments,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            config,
            parameters,
            steps: 0,
        })
    }

    /// Moves every parameter by one step; returns the norm of the whole gradient before clipping. When it is not finite
    /// nothing moves.
    ///
    /// # Errors
    /// When a parameter has no gradient: a part of the graph has been cut.
    pub fn step(&mut self, gradients: &Gradients, learning_rate: f64) -> Result<f64> {
        let norm = gradients.norm()?;
        if !norm.is_finite() {
            return Ok(norm);
        }
        self.steps += 1;
        let clip = (self.config.max_grad_norm / (norm + 1e-6)).min(1.0);
        let bias1 = 1.0 - self.config.beta1.powi(self.steps as i32);
        let bias2 = 1.0 - self.config.beta2.powi(self.steps as i32);
        let update = Update {
            beta1: self.config.beta1 as f32,
            beta2: self.config.beta2 as f32,
            gradient_scale: clip as f32,
            step_size: (learning_rate / bias1) as f32,
            second_scale: bias2.recip() as f32,
            eps: self.config.eps as f32,
            keep: (1.0 - learning_rate * self.config.weight_decay) as f32,
        };
        for (parameter, gradient) in self.parameters.iter().zip(&gradients.by_parameter) {
            if parameter.variable.device().is_cpu() {
                parameter.variable.inplace_op2(
                    gradient,
                    &Step {
                        update,
                        moments: &parameter.moments,
                    },
                )?;
            } else {
                parameter.step_on_device(gradient, update)?;
            }
        }
        Ok(norm)
    }

    /// The gradients of the parameters, in their order.
    ///
    /// # Errors
    /// Names the first parameter without one.
    pub fn gradients(&self, store: &GradStore) -> Result<Gradients> {
        let by_parameter = self
            .parameters
            .iter()
            .map(|parameter| match store.get(&parameter.variable) {
                Some(gradient) => gradient.contiguous(),
                None => bail!("no gradient reaches {}", parameter.name),
            })
            .collect::<Result<_>>()?;
        Ok(Gradients { by_parameter })
    }

    /// The state to be kept in a checkpoint: moments by parameter name, and the number of steps made.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub fn state(&self) -> Result<(Vec<(String, Tensor)>, usize)> {
        let mut tensors = Vec::new();
        for parameter in &self.parameters {
            let moments = lock(&parameter.moments);
            for (kind, values) in [("first", &moments.first), ("second", &moments.second)] {
                let tensor = Tensor::from_slice(values, parameter.variable.shape(), &candle_core::Device::Cpu)?;
                tensors.push((format!("{}.{kind}", parameter.name), tensor));
            }
        }
        Ok((tensors, self.steps))
    }

    /// Takes up a state that [`AdamW::state`] gave.
    ///
    /// # Errors
    /// Names what is missing.
    pub fn restore(&mut self, tensor: impl Fn(&str) -> Option<Tensor>, steps: usize) -> Result<()> {
        for parameter in &self.parameters {
            let read = |kind: &str| -> Result<Vec<f32>> {
                let name = format!("{}.{kind}", parameter.name);
                match tensor(&name) {
                    Some(tensor) if tensor.shape() == parameter.variable.shape() => tensor.flatten_all()?.to_vec1(),
                    _ => bail!("the optimizer's state lacks {name}"),
                }
            };
            *lock(&parameter.moments) = Moments {
                first: read("first")?,
                second: read("second")?,
            };
        }
        self.steps = steps;
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// One gradient a parameter, in the optimizer's order.
#[derive(Debug, Clone)]
pub struct Gradients {
    by_parameter: Vec<Tensor>,
}

impl Gradients {
    /// Adds the gradients of another part of the same step.
    ///
    /// # Errors
    /// When they belong to other parameters.
    pub fn add(&mut self, other: &Self) -> Result<()> {
        for (sum, gradient) in self.by_parameter.iter_mut().zip(&other.by_parameter) {
            *sum = (&*sum + gradient)?;
        }
        Ok(())
    }

    /// Multiplies all of them: a sum over the parts of a step becomes their mean.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub fn scale(&mut self, factor: f64) -> Result<()> {
        for gradient in &mut self.by_parameter {
            *gradient = (&*gradient * factor)?;
        }
        Ok(())
    }

    /// One tensor a parameter, in the optimizer's order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.by_parameter
    }

    /// Euclidean norm of all gradients together.
    ///
    /// # Errors
    /// When a value cannot be read.
    pub fn norm(&self) -> Result<f64> {
        let mut squares = 0f64;
        for gradient in &self.by_parameter {
            squares += f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?);
        }
        Ok(squares.sqrt())
    }
}

#[derive(Clone, Copy)]
struct Update {
    beta1: f32,
    beta2: f32,
    gradient_scale: f32,
    step_size: f32,
    second_scale: f32,
    eps: f32,
    keep: f32,
}

struct Step<'a> {
    update: Update,
    moments: &'a Mutex<Moments>,
}

impl InplaceOp2 for Step<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, dst: &mut CpuStorage, dst_layout: &Layout, src: &CpuStorage, src_layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(values), CpuStorage::F32(gradient)) = (dst, src) else {
            bail!("adamw moves f32 values only")
        };
        let (Some((start, end)), Some((from, to))) = (dst_layout.contiguous_offsets(), src_layout.contiguous_offsets())
        else {
            bail!("adamw moves contiguous values only")
        };
        let mut moments = lock(self.moments);
        let Moments { first, second } = &mut *moments;
        step(&mut values[start..end], &gradient[from..to], first, second, self.update);
        Ok(())
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+fma", "x86_64+avx2+fma"))]
fn step(values: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32], update: Update) {
    let moments = first.iter_mut().zip(second.iter_mut());
    for ((value, gradient), (first, second)) in values.iter_mut().zip(gradient).zip(moments) {
        let gradient = gradient * update.gradient_scale;
        *first = update.beta1 * *first + (1.0 - update.beta1) * gradient;
        *second = update.beta2 * *second + (1.0 - update.beta2) * gradient * gradient;
        let scaled = (*second * update.second_scale).sqrt() + update.eps;
        *value = *value * update.keep - update.step_size * *first / scaled;
    }
}

impl Parameter {
    /// The same step where the parameter does not live on the CPU: moments stay on the host, values go there and back.
    fn step_on_device(&self, gradient: &Tensor, update: Update) -> Result<()> {
        let cpu = candle_core::Device::Cpu;
        let mut values: Vec<f32> = self.variable.to_device(&cpu)?.flatten_all()?.to_vec1()?;
        let mut moments = lock(&self.moments);
        let Moments { first, second } = &mut *moments;
        with_values(&gradient.to_device(&cpu)?.contiguous()?, |gradient| {
            step(&mut values, gradient, first, second, update);
            Ok(())
        })?;
        self.variable.set(&Tensor::from_vec(
            values,
            self.variable.shape(),
            self.variable.device(),
        )?)
    }
}

/// How the learning rate goes on after its warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Half a cosine down to zero.
    Cosine,
    /// A straight line down to zero.
    Linear,
    /// No change.
    Constant,
}

impl Schedule {
    /// Factor on the peak learning rate for a step counted from 0.
    pub fn factor(self, step: usize, warmup: usize, total: usize) -> f64 {
        if step < warmup {
            return (step + 1) as f64 / warmup as f64;
        }
        let progress = (step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
        match self {
            Self::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos()),
            Self::Linear => 1.0 - progress.min(1.0),
            Self::Constant => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn a_step_agrees_with_the_published_update() {
        let variable = Var::new(&[1.0f32, -2.0], &Device::Cpu).unwrap();
        let config = AdamWConfig {
            weight_decay: 0.1,
            max_grad_norm: 1e9,
            ..AdamWConfig::default()
        };
        let mut optimizer = AdamW::new(vec![("p".to_owned(), variable.as_tensor().clone())], config).unwrap();
        let (mut value, mut m, mut v) = (1.0f64, 0.0f64, 0.0f64);
        for t in 1..=3 {
            let store = variable.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            let gradients = optimizer.gradients(&store).unwrap();
            optimizer.step(&gradients, 0.05).unwrap();
            let g = 2.0 * value;
            m = 0.9 * m + 0.1 * g;
            v = 0.99 * v + 0.01 * g * g;
            let (m_hat, v_hat) = (m / (1.0 - 0.9f64.powi(t)), v / (1.0 - 0.99f64.powi(t)));
            value = value - 0.05 * 0.1 * value - 0.05 * m_hat / (v_hat.sqrt() + 1e-8);
            let got = f64::from(variable.to_vec1::<f32>().unwrap()[0]);
            assert!((got - value).abs() < 1e-5, "step {t}: {got}, expected {value}");
        }
    }

    #[test]
    fn a_parameter_that_no_gradient_reaches_is_named() {
        let variable = Var::new(&[1.0f32], &Device::Cpu).unwrap();
        let other = Var::new(&[1.0f32], &Device::Cpu).unwrap();
        let optimizer = AdamW::new(
            vec![("lost".to_owned(), variable.as_tensor().clone())],
            AdamWConfig::default(),
        )
        .unwrap();
        let error = optimizer
            .gradients(&other.sqr().unwrap().sum_all().unwrap().backward().unwrap())
            .unwrap_err();
        assert!(error.to_string().contains("lost"), "{error}");
    }

    #[test]
    fn schedules_warm_up_and_end_where_they_should() {
        assert_eq!(Schedule::Cosine.factor(0, 10, 100), 0.1);
        assert_eq!(Schedule::Cosine.factor(9, 10, 100), 1.0);
        assert!(Schedule::Cosine.factor(100, 10, 100) < 1e-12);
        assert!((Schedule::Linear.factor(55, 10, 100) - 0.5).abs() < 1e-12);
        assert_eq!(Schedule::Constant.factor(99, 0, 100), 1.0);
    }
}
