// The assembly against a tiny model: Tests.exe MODEL. Prints a line for each test; the exit code counts failures.
using System;
using System.Runtime.InteropServices;
using RuntimeEngine;

public static class Tests
{
    private static int failures;

    private static void Test(string name, Action body)
    {
        try
        {
            body();
            Console.WriteLine("ok " + name);
        }
        catch (Exception error)
        {
            failures++;
            Console.WriteLine("FAILED " + name + ": " + error);
        }
    }

    private static void Equal<T>(T found, T expected)
    {
        if (!Equals(found, expected)) throw new Exception("found " + found + ", expected " + expected);
    }

    private static Event End(Engine engine, ulong number, EventKind kind, ref string text)
    {
        for (; ; )
        {
            engine.Wait(1000);
            foreach (var happened in engine.Poll())
            {
                if (happened.Object != number) continue;
                if (happened.Kind == EventKind.Text) text += happened.Text;
                if (happened.Kind == kind) return happened;
            }
        }
    }

    private static string Answer(Engine engine, Session session, uint tokens)
    {
        var text = "";
        var request = session.Generate(new GenerateOptions { MaxTokens = tokens, IgnoreEos = 1 });
        Equal(End(engine, request.Number, EventKind.Done, ref text).Status, 0);
        return text;
    }

    public static int Main(string[] arguments)
    {
        var engine = Engine.Create(backend: 3);
        var model = engine.Load(arguments[0]);
        model.Wait();
        Test("an answer, a fork, a rewind", () =>
        {
            using (var session = model.NewSession())
            {
                session.AppendText("Hello");
                var start = session.TokenCount;
                var first = Answer(engine, session, 8);
                Equal(session.TokenCount > start, true);
                using (var fork = session.Fork()) Equal(Answer(engine, fork, 4), Answer(engine, session, 4));
                session.Rewind(start);
                Equal(Answer(engine, session, 8), first);
            }
        });
        Test("cancel", () =>
        {
            using (var session = model.NewSession())
            {
                session.AppendText("Hello");
                var request = session.Generate(new GenerateOptions { MaxTokens = 100, IgnoreEos = 1 });
                request.Cancel();
                var text = "";
                Equal(End(engine, request.Number, EventKind.Done, ref text).Status, -10);
                request.Cancel();
            }
        });
        Test("errors are exceptions", () =>
        {
            try
            {
                using (var missing = engine.Load("/no/such/model.gguf")) missing.Wait();
                throw new Exception("it was loaded");
            }
            catch (RuntimeException error)
            {
                Equal(error.Name, "RUNTIME_ERROR_IO");
                Equal(error.Message.Contains("/no/such/model.gguf"), true);
            }
        });
        Test("training is heard", () =>
        {
            var options = new TrainingOptions { MaxSteps = 30, Rank = 8, BatchSize = 1, GradAccum = 1, LearningRate = 2e-2, WarmupSteps = -1 };
            using (var session = model.NewSession())
            using (var job = model.NewTraining(options))
            {
                session.AppendText("Hello");
                var start = session.TokenCount;
                var before = Answer(engine, session, 8);
                job.AddExample("{\"prompt\": \"Hello\", \"completion\": \" world, this was learned\"}");
                job.Start();
                var text = "";
                Equal(End(engine, job.Number, EventKind.TrainingDone, ref text).Status, 0);
                using (var adapter = job.Snapshot())
                {
                    session.SetAdapters(adapter);
                    session.Rewind(start);
                    Equal(Answer(engine, session, 8) == before, false);
                }
            }
        });
        Test("any order of release, twice", () =>
        {
            engine.Dispose();
            using (var session = model.NewSession()) Equal(session.TokenCount, 0ul);
            model.Dispose();
            model.Dispose();
        });
        return failures;
    }
}
