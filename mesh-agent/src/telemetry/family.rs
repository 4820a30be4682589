//! Samples of a described metric, in the form of the prometheus crate.

use prometheus::proto;

use super::metrics::{Metric, Type};

/// A metric with its samples.
pub struct Family {
    metric: &'static Metric,
    samples: Vec<proto::Metric>,
}

impl Family {
    /// Without samples.
    pub fn new(metric: &'static Metric) -> Self {
        Self { metric, samples: Vec::new() }
    }

    /// With one sample that has no labels.
    pub fn single(metric: &'static Metric, value: f64) -> proto::MetricFamily {
        let mut family = Self::new(metric);
        family.add(&[], value);
        family.finish()
    }

    /// Adds a sample; `labels` in the order of the description.
    pub fn add(&mut self, labels: &[&str], value: f64) {
        let mut sample = proto::Metric::from_label(self.pairs(labels));
        if self.metric.kind == Type::Gauge {
            let mut gauge = proto::Gauge::default();
            gauge.set_value(value);
            sample.set_gauge(gauge);
        } else {
            let mut counter = proto::Counter::default();
            counter.set_value(value);
            sample.set_counter(counter);
        }
        self.samples.push(sample);
    }

    /// Adds a histogram: `counts` by bucket, not cumulative, the last without a bound.
    pub fn add_histogram(&mut self, labels: &[&str], bounds: &[f64], counts: &[u64], sum: f64) {
        let mut total = 0;
        let mut buckets = Vec::with_capacity(bounds.len());
        for (bound, count) in bounds.iter().zip(counts) {
            total += count;
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(total);
            buckets.push(bucket);
        }
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(buckets);
        histogram.set_sample_count(counts.iter().sum());
        histogram.set_sample_sum(sum);
        let mut sample = proto::Metric::from_label(self.pairs(labels));
        sample.set_histogram(histogram);
        self.samples.push(sample);
    }

    fn pairs(&self, values: &[&str]) -> Vec<proto::LabelPair> {
        debug_assert_eq!(values.len(), self.metric.labels.len(), "{}", self.metric.name);
        let pair = |(name, value): (&&str, &&str)| {
            let mut pair = proto::LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        };
        self.metric.labels.iter().zip(values).map(pair).collect()
    }

    /// As the crate wants it.
    pub fn finish(self) -> proto::MetricFamily {
        let mut family = proto::MetricFamily::default();
        family.set_name(self.metric.name.into());
        family.set_help(self.metric.help.into());
        family.set_field_type(match self.metric.kind {
            Type::Counter => proto::MetricType::COUNTER,
            Type::Gauge => proto::MetricType::GAUGE,
            Type::Histogram => proto::MetricType::HISTOGRAM,
        });
        family.set_metric(self.samples);
        family
    }
}
