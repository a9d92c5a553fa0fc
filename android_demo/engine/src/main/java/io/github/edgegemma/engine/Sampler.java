package io.github.edgegemma.engine;

import java.nio.FloatBuffer;
import java.util.Arrays;
import java.util.PriorityQueue;
import java.util.Random;

/**
 * From logits to an id: temperature, top-k, top-p, then a draw. The filters are those of
 * edge_gemma.runtime.sampling, in its order; only the random numbers differ.
 */
final class Sampler {
    /** Ids in play and their probabilities, the most likely first, of equal ones the lower id. */
    static final class Candidates {
        final int[] ids;
        final double[] probabilities;

        Candidates(int[] ids, double[] probabilities) {
            this.ids = ids;
            this.probabilities = probabilities;
        }
    }

    private final float temperature;
    private final int topK;
    private final double topP;
    private final Random random;
    private float[] scores = new float[0]; // [V]

    Sampler(GenerationSettings settings) throws PromptException {
        if (!(settings.temperature >= 0 && settings.temperature < Double.POSITIVE_INFINITY)) {
            throw new PromptException(
                    "temperature is " + settings.temperature + "; expected a finite number of at least 0");
        }
        if (settings.topK < 0) {
            throw new PromptException("topK is " + settings.topK + "; expected at least 0 (0 turns it off)");
        }
        if (!(settings.topP >= 0 && settings.topP <= 1)) {
            throw new PromptException("topP is " + settings.topP + "; expected a number from 0 to 1");
        }
        temperature = (float) settings.temperature;
        topK = settings.topK;
        topP = settings.topP;
        random = settings.seed == null ? new Random() : new Random(settings.seed);
    }

    /** The next id, by logits float32 [V]. */
    int sample(FloatBuffer logits) throws EngineException {
        Candidates kept = candidates(logits);
        if (temperature == 0) {
            return kept.ids[0];
        }
        double drawn = random.nextDouble();
        double sum = 0;
        for (int i = 0; i < kept.ids.length; i++) {
            sum += kept.probabilities[i];
            if (drawn < sum) {
                return kept.ids[i];
            }
        }
        return kept.ids[kept.ids.length - 1]; // the sum may end a hair below 1
    }

    /** What the settings leave in play. */
    Candidates candidates(FloatBuffer logits) throws EngineException {
        int best = read(logits);
        // A temperature so low that the division overflows is greedy, too.
        float quotient = scores[best] / temperature;
        if (Float.isNaN(quotient) || Float.isInfinite(quotient)) {
            return new Candidates(new int[] {best}, new double[] {1});
        }
        for (int i = 0; temperature != 1 && i < scores.length; i++) {
            scores[i] /= temperature;
        }
        int[] ids = ranked(scores, threshold(scores, topK));
        double[] probabilities = new double[ids.length];
        double sum = 0;
        for (int i = 0; i < ids.length; i++) {
            probabilities[i] = Math.exp((double) scores[ids[i]] - scores[ids[0]]);
            sum += probabilities[i];
        }
        double tail = 0; // probability of a token and all less likely ones
        boolean[] keep = new boolean[ids.length];
        for (int i = ids.length - 1; i >= 0; i--) {
            probabilities[i] /= sum;
            tail += probabilities[i];
            keep[i] = i == 0 || probabilities[i] > 0 && (topP >= 1 || tail > 1 - topP);
        }
        return filtered(ids, probabilities, keep);
    }

    /** Copies the logits, and gives the place of the best one. */
    private int read(FloatBuffer logits) throws EngineException {
        if (scores.length != logits.remaining()) {
            scores = new float[logits.remaining()];
        }
        logits.duplicate().get(scores);
        int best = 0;
        for (int i = 0; i < scores.length; i++) {
            if (Float.isNaN(scores[i])) {
                best = i;
                break;
            }
            if (scores[i] > scores[best]) {
                best = i;
            }
        }
        if (Float.isNaN(scores[best]) || Float.isInfinite(scores[best])) {
            throw new EngineException("the model produced " + scores[best] + " as the best of " + scores.length
                    + " logits; expected a finite one: export the artifact again and run `edge-gemma verify`");
        }
        return best;
    }

    /** The k-th best score, or the smallest finite one. */
    private static float threshold(float[] scores, int k) {
        if (k == 0 || k >= scores.length) {
            return -Float.MAX_VALUE;
        }
        PriorityQueue<Float> best = new PriorityQueue<Float>(k + 1); // the worst of them first
        float worst = Float.NEGATIVE_INFINITY;
        for (float score : scores) {
            if (best.size() < k || score > worst) {
                best.add(score);
                if (best.size() > k) {
                    best.remove();
                }
                worst = best.element();
            }
        }
        return Math.max(worst, -Float.MAX_VALUE);
    }

    /** Ids of the scores from a threshold on, the best first, of equal ones the lower id. */
    private static int[] ranked(float[] scores, float threshold) {
        long[] order = new long[64];
        int count = 0;
        for (int i = 0; i < scores.length; i++) {
            if (scores[i] >= threshold) {
                if (count == order.length) {
                    order = Arrays.copyOf(order, 2 * count);
                }
                // Bits of floats order like the floats once those of negative ones are inverted.
                int bits = Float.floatToIntBits(scores[i] + 0.0f); // -0 becomes 0
                int rising = bits ^ (bits >> 31 & Integer.MAX_VALUE);
                order[count++] = (long) ~rising << 32 | i;
            }
        }
        Arrays.sort(order, 0, count);
        int[] ids = new int[count];
        for (int i = 0; i < count; i++) {
            ids[i] = (int) order[i];
        }
        return ids;
    }

    private static Candidates filtered(int[] ids, double[] probabilities, boolean[] keep) {
        int count = 0;
        double sum = 0;
        for (int i = 0; i < ids.length; i++) {
            if (keep[i]) {
                ids[count] = ids[i];
                probabilities[count++] = probabilities[i];
                sum += probabilities[i];
            }
        }
        for (int i = 0; i < count; i++) {
            probabilities[i] /= sum;
        }
        return new Candidates(Arrays.copyOf(ids, count), Arrays.copyOf(probabilities, count));
    }
}
