// A frame loop as Unity runs it: Npc is a MonoBehaviour in all but name, and Main calls its Update 60 times a second. In Unity
// derive it from MonoBehaviour, drop Main, and put the shared library into Assets/Plugins.
using System;
using System.Diagnostics;
using System.Threading;
using RuntimeEngine;

public sealed class Npc : IDisposable
{
    private readonly Engine engine = Engine.Create(backend: 3, stepped: true);
    private readonly Model model;
    private Session session;
    private ulong speaking;

    public string Words { get; private set; } = "";
    public bool Done { get; private set; }

    public Npc(string path)
    {
        model = engine.Load(path);
    }

    // 4 ms of a frame: loading goes on meanwhile on a thread of its own.
    public void Update()
    {
        engine.Step(4000);
        foreach (var happened in engine.Poll())
        {
            if (happened.Status != 0) throw new InvalidOperationException(happened.Text);
            if (happened.Kind == EventKind.ModelReady)
            {
                session = model.NewSession();
                session.AppendText("Hello");
                speaking = session.Generate(new GenerateOptions { MaxTokens = 8, IgnoreEos = 1 }).Number;
            }
            if (happened.Kind == EventKind.Text && happened.Object == speaking) Words += happened.Text;
            if (happened.Kind == EventKind.Done && happened.Object == speaking) Done = true;
        }
    }

    public void Dispose()
    {
        session?.Dispose();
        model.Dispose();
        engine.Dispose();
    }
}

public static class FrameLoop
{
    public static int Main(string[] arguments)
    {
        using (var npc = new Npc(arguments[0]))
        {
            var clock = Stopwatch.StartNew();
            for (int frame = 1; !npc.Done; frame++)
            {
                npc.Update();
                var left = frame * 1000 / 60 - (int)clock.ElapsedMilliseconds;
                if (left > 0) Thread.Sleep(left);
            }
            Console.WriteLine("Hello" + npc.Words);
        }
        return 0;
    }
}
