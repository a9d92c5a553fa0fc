package io.github.edgegemma.demo.core;

import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.lang.reflect.Modifier;
import java.util.Arrays;
import java.util.Objects;

/** Runs the tests of a class, which are its static methods that take and return nothing, unless they are private. */
public final class Runner {
    private Runner() {}

    /** The name of one class. */
    public static void main(String[] arguments) throws ReflectiveOperationException {
        for (Method method : Class.forName(arguments[0]).getDeclaredMethods()) {
            if (isTest(method)) {
                try {
                    method.setAccessible(true);
                    method.invoke(null);
                } catch (InvocationTargetException thrown) {
                    System.err.println("failed: " + method.getName());
                    thrown.getCause().printStackTrace();
                    System.exit(1);
                }
                System.out.println("ok " + method.getName());
            }
        }
        System.exit(0); // threads of an assistant may wait for work
    }

    private static boolean isTest(Method method) {
        return method.getParameterCount() == 0
                && method.getReturnType() == void.class
                && !Modifier.isPrivate(method.getModifiers());
    }

    /** Part of a test. */
    public interface Step {
        /** Does it. */
        void run() throws Exception;
    }

    /** Both are equal. */
    public static void equal(Object expected, Object actual) {
        if (!Objects.deepEquals(expected, actual)) {
            throw new AssertionError("expected " + text(expected) + ", got " + text(actual));
        }
    }

    /** The step throws a DemoException of this kind, whose detail contains a text. */
    public static void refuses(Failure.Kind kind, String detail, Step step) throws Exception {
        try {
            step.run();
        } catch (DemoException thrown) {
            equal(kind, thrown.failure.kind);
            equal(true, thrown.failure.detail.contains(detail));
            return;
        }
        throw new AssertionError("nothing was refused; expected " + kind);
    }

    private static String text(Object value) {
        String all = Arrays.deepToString(new Object[] {value});
        return all.substring(1, all.length() - 1);
    }
}
